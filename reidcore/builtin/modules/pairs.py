"""Losses over pairs of embeddings in a batch. B batch, D embedding.

Anchors without a positive or without a negative are left out, and images without a class are neither; a batch without
any anchor gives 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidcore.types import Batch, Needs, Output, Step

Feature = Literal["before", "after"]
Groups = Sequence[str | Sequence[str]]


class Pairwise(nn.Module):
    """A loss over the embeddings of the batch, averaged over `on`: views, or groups of views that are joined.

    `feature` is what of the head is compared: before or after its norm. With `gather` the batch is that of all
    processes.
    """

    name: str

    def __init__(self, feature: Feature, on: Groups, gather: bool = False) -> None:
        super().__init__()
        self.feature = feature
        self.groups = tuple((item,) if isinstance(item, str) else tuple(item) for item in on)
        views = tuple(dict.fromkeys(view for group in self.groups for view in group))
        self.needs = Needs(views=views, gather=gather)

    def forward(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return `{name: scalar}`."""
        features = getattr(output, self.feature)
        positive, negative = _pairs(batch)
        terms = [
            self._one(torch.cat([features[view] for view in group], 1), positive, negative) for group in self.groups
        ]
        return {self.name: torch.stack(terms).mean()}

    def _one(self, x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        anchors = positive.any(1) & negative.any(1)
        with torch.autocast(x.device.type, enabled=False):  # differences of squares need all digits
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if not anchors.any():
                return x.sum() * 0
            return self.compare(x, anchors, positive[anchors], negative[anchors])

    def compare(self, x: Tensor, anchors: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(B, D) embeddings, a (B,) mask of the A anchors, (A, B) masks of their positives and negatives -> scalar."""
        raise NotImplementedError


def _pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the (B, B) masks of positive and of negative pairs; see `reidcore.types.Batch`."""
    guesses = batch.labels[:, None] if batch.groupings is None else batch.groupings
    same = guesses[:, None] == guesses[None, :]
    known = (guesses[:, None] >= 0) & (guesses[None, :] >= 0)
    compared = known.any(2)
    positive, negative = compared & (same | ~known).all(2), compared & ~(same & known).any(2)
    return positive.fill_diagonal_(False), negative


class Triplet(Pairwise):
    """Triplet loss (paper, section 4.1): d_p, the distance to a positive, is to be less than d_n, that to a negative.

    mining "hard": each anchor with its farthest positive and nearest negative (Hermans et al. 2017); "weighted":
    d_p and d_n are means of all, weighted by the softmax of d and of -d (Ye et al. 2021); "all": every triplet.
    margin None: log(1 + exp(d_p - d_n)); else max(0, d_p - d_n + margin).
    distance "euclidean", of directions only with `normalize`, or "cosine": 1 - cos.
    """

    name = "triplet"

    def __init__(
        self,
        margin: float | None,
        feature: Feature,
        normalize: bool,
        on: Groups,
        mining: Literal["hard", "weighted", "all"] = "hard",
        distance: Literal["euclidean", "cosine"] = "euclidean",
        reduction: Literal["mean", "sum"] = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__(feature, on, gather)
        self.margin, self.normalize, self.mining = margin, normalize, mining
        self.distance, self.reduction = distance, reduction

    def compare(self, x: Tensor, anchors: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(B, D) embeddings, a (B,) mask of the A anchors, (A, B) masks of their positives and negatives -> scalar."""
        if self.normalize or self.distance == "cosine":
            x = F.normalize(x)
        distances = (1 - x @ x.T if self.distance == "cosine" else pairwise_distance(x))[anchors]
        if self.mining == "all":
            anchor, other = positive.nonzero(as_tuple=True)
            gap = (distances[anchor, other][:, None] - distances[anchor])[negative[anchor]]
        else:
            reach = _hardest if self.mining == "hard" else _weighted
            gap = reach(distances, positive, 1) - reach(distances, negative, -1)
        losses = F.softplus(gap) if self.margin is None else F.relu(gap + self.margin)
        return losses.mean() if self.reduction == "mean" else losses.sum()


def _hardest(distances: Tensor, mask: Tensor, sign: int) -> Tensor:
    """Return the largest (sign 1) or smallest (sign -1) distance of each row's mask."""
    return sign * (sign * distances).masked_fill(~mask, -torch.inf).amax(1)


def _weighted(distances: Tensor, mask: Tensor, sign: int) -> Tensor:
    """Return the mean of each row's mask, weighted by the softmax of sign times the distance."""
    return ((sign * distances).masked_fill(~mask, -torch.inf).softmax(1) * distances).sum(1)


class PairCircle(Pairwise):
    """Circle loss for pairs (Sun et al. 2020, equations 4 to 8), of cosines s.

    log(1 + N P), N the sum over negatives of exp(g [s + m]+ (s - m)), P that over positives of
    exp(-g [1 + m - s]+ (s - (1 - m))); the weights in brackets carry no gradient.
    """

    name = "pair-circle"

    def __init__(self, margin: float, scale: float, feature: Feature, on: Groups, gather: bool = False) -> None:
        super().__init__(feature, on, gather)
        self.margin, self.scale = margin, scale

    def scores(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exponents of cosines `s` as positives and as negatives, without the scale."""
        m = self.margin
        positive = -(1 + m - s.detach()).clamp(min=0) * (s - (1 - m))
        negative = (s.detach() + m).clamp(min=0) * (s - m)
        return positive, negative

    def compare(self, x: Tensor, anchors: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(B, D) embeddings, a (B,) mask of the A anchors, (A, B) masks of their positives and negatives -> scalar."""
        x = F.normalize(x)
        to_positive, to_negative = self.scores(x[anchors] @ x.T)
        pull = (self.scale * to_positive).masked_fill(~positive, -torch.inf).logsumexp(1)
        push = (self.scale * to_negative).masked_fill(~negative, -torch.inf).logsumexp(1)
        return F.softplus(pull + push).mean()


class PairCosFace(PairCircle):
    """CosFace for pairs: as circle loss with the exponents -g s of positives and g (s + m) of negatives."""

    name = "pair-cosface"

    def scores(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exponents of cosines `s` as positives and as negatives, without the scale."""
        return -s, s + self.margin


class Center(nn.Module):
    """Centre loss: half the squared distance to the centre of the image's class (Wen et al. 2016, equation 2).

    The mean over images and over the views in `on`, whose dimensions are `dims`. After each batch in training the
    centre of a class with n images in it moves by `rate` times the sum of their distances from it over 1 + n
    (equation 4). The batch is that of all processes, so that all have the same centres.
    """

    centers: Tensor

    def __init__(self, classes: int, on: Sequence[str], dims: Mapping[str, int], rate: float, feature: Feature) -> None:
        super().__init__()
        self.on, self.rate, self.feature = tuple(on), rate, feature
        self.needs = Needs(views=self.on, gather=True, classes=True)
        self.register_buffer("centers", torch.zeros(classes, sum(dims[view] for view in self.on)))

    def forward(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return `{"center": scalar}`."""
        features = getattr(output, self.feature)
        x = torch.cat([features[view] for view in self.on], 1)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        known = batch.labels >= 0
        labels, x = batch.labels[known], x[known]
        away = x - self.centers[labels]
        if self.training:
            count = torch.bincount(labels, minlength=len(self.centers))
            moves = torch.zeros_like(self.centers).index_add_(0, labels, away.detach().to(self.centers.dtype))
            self.centers += self.rate * moves / (1 + count)[:, None]
        return {"center": away.square().sum() / 2 / max(1, len(labels)) / len(self.on)}


def pairwise_distance(x: Tensor) -> Tensor:
    """(B, D) -> (B, B) euclidean distances; the gradient is finite at distance 0."""
    squares = x.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2 * x @ x.T
    return squared.clamp(min=1e-12).sqrt()
