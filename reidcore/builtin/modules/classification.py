"""Losses over class scores. B batch, K classes.

Images without a class are left out; a batch without any labelled image gives 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidcore.types import Batch, Needs, Output, Step

Spread = Literal["others", "all"]


class Classification(nn.Module):
    """A loss that is the mean of `each` over images, averaged over the views in `on`.

    Of an image whose label is a mixture it is the mean over the classes by their shares.
    """

    name: str
    logits: Literal["linear", "cosine"]

    def __init__(self, on: Sequence[str]) -> None:
        super().__init__()
        self.on = tuple(on)
        self.needs = Needs(views=self.on, logits=self.logits)

    def forward(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return `{name: scalar}`."""
        return {self.name: torch.stack([self._one(output.logits[view], batch) for view in self.on]).mean()}

    def _one(self, logits: Tensor, batch: Batch) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        known = batch.labels >= 0
        if not known.any():
            return logits.sum() * 0
        with torch.autocast(logits.device.type, enabled=False):
            if batch.mixture is None:
                return self.each(logits[known], batch.labels[known]).mean()
            classes, shares = batch.mixture.classes[known], batch.mixture.shares[known]
            image, place = shares.nonzero(as_tuple=True)
            each = self.each(logits[known][image], classes[image, place])
            return (shares[image, place] * each).sum() / len(shares)

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B,) classes -> (B,) losses."""
        raise NotImplementedError


def smoothed_target(smoothing: Any, classes: int, spread: Spread) -> tuple[Any, Any]:
    """Return the target of the true class and that of each other one, of `classes`.

    `spread` "others": 1 - smoothing, and smoothing / (K - 1) (paper, section 4.1); "all": every class has
    smoothing / K, and the true one 1 - smoothing more (Szegedy et al. 2016).
    """
    share = smoothing / classes if spread == "all" else smoothing / max(1, classes - 1)
    return 1 - smoothing + (share if spread == "all" else 0), share


def smoothed_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float | Tensor, spread: Spread = "others"
) -> Tensor:
    """(B, K) logits, (B,) classes -> (B,) softmax cross-entropies; `smoothing` is a number or (B,)."""
    log_p = logits.log_softmax(1)
    true = log_p.gather(1, labels[:, None]).squeeze(1)
    target, share = smoothed_target(smoothing, logits.shape[1], spread)
    losses: Tensor = -(target * true + share * (log_p.sum(1) - true))
    return losses


class CrossEntropy(Classification):
    """Softmax cross-entropy with smoothed targets (paper, section 4.1)."""

    name = "cross-entropy"
    logits = "linear"

    def __init__(self, smoothing: float, on: Sequence[str], spread: Spread = "others") -> None:
        super().__init__(on)
        self.smoothing, self.spread = smoothing, spread

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B,) classes -> (B,) losses."""
        return smoothed_cross_entropy(logits, labels, self.smoothing, self.spread)


class AdaptiveCrossEntropy(CrossEntropy):
    """Cross-entropy whose targets are smoothed by `smoothing` times the probability that the true class already has.

    So what is learned well is smoothed most; no gradient flows through that probability.
    """

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B,) classes -> (B,) losses."""
        sure = logits.detach().softmax(1).gather(1, labels[:, None]).squeeze(1)
        return smoothed_cross_entropy(logits, labels, self.smoothing * sure, self.spread)


class BinaryCrossEntropy(CrossEntropy):
    """Equation 6 with its sign mended: minus the sum over classes of y log p + (1 - y) log(1 - p), p the softmax."""

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B,) classes -> (B,) losses."""
        log_p = logits.log_softmax(1)
        true, others = smoothed_target(self.smoothing, logits.shape[1], self.spread)
        targets = torch.full_like(log_p, others).scatter_(1, labels[:, None], true)
        return -(targets * log_p + (1 - targets) * _log_one_minus(log_p)).sum(1)


class Focal(Classification):
    """Focal loss of the softmax: -alpha (1 - p)^gamma log p for the true class's p (Lin et al. 2017)."""

    name = "focal"
    logits = "linear"

    def __init__(self, alpha: float, gamma: float, on: Sequence[str]) -> None:
        super().__init__(on)
        self.alpha, self.gamma = alpha, gamma

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B,) classes -> (B,) losses."""
        log_p = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        return -self.alpha * (self.gamma * _log_one_minus(log_p)).exp() * log_p


class Margin(Classification):
    """Smoothed softmax cross-entropy over scaled cosines of which the true class's is made harder by a margin.

    `adjust` says how. Cosines a little outside -1..1, as rounding makes them, are taken as they are.
    """

    logits = "cosine"

    def __init__(self, scale: float, margin: float, smoothing: float, on: Sequence[str]) -> None:
        super().__init__(on)
        self.scale, self.margin, self.smoothing = scale, margin, smoothing

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) cosines, (B,) classes -> (B,) losses."""
        true = F.one_hot(labels, logits.shape[1]).bool()
        return smoothed_cross_entropy(self.scale * self.adjust(logits, true), labels, self.smoothing)

    def adjust(self, cosines: Tensor, true: Tensor) -> Tensor:
        """(B, K) cosines and a mask of the true class -> (B, K) scores."""
        raise NotImplementedError


class CosFace(Margin):
    """The true class's cosine less the margin (Wang et al. 2018); without a margin the cosine softmax."""

    name = "cosface"

    def adjust(self, cosines: Tensor, true: Tensor) -> Tensor:
        """(B, K) cosines and a mask of the true class -> (B, K) scores."""
        return cosines - self.margin * true


class ArcFace(Margin):
    """The margin is added to the true class's angle (Deng et al. 2019).

    Where the angle would pass pi the score goes on falling on a line, cos - m sin m, instead of rising again. The
    angle is never computed: cos(t + m) = cos t cos m - sin t sin m, whose gradient is kept finite at both ends.
    """

    name = "arcface"

    def adjust(self, cosines: Tensor, true: Tensor) -> Tensor:
        """(B, K) cosines and a mask of the true class -> (B, K) scores."""
        sine = (1 - cosines.square()).clamp(min=1e-6).sqrt()
        moved = cosines * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosines - self.margin * math.sin(self.margin)
        moved = torch.where(cosines > -math.cos(self.margin), moved, beyond)
        return torch.where(true, moved, cosines)


class CircleSoftmax(Margin):
    """Circle loss for class labels (Sun et al. 2020, equation 4 over class rows).

    The true class scores [1 + m - c]+ (c - (1 - m)), the others [c + m]+ (c - m); the weights in brackets carry no
    gradient.
    """

    name = "circle"

    def adjust(self, cosines: Tensor, true: Tensor) -> Tensor:
        """(B, K) cosines and a mask of the true class -> (B, K) scores."""
        m, c = self.margin, cosines
        positive = (1 + m - c.detach()).clamp(min=0) * (c - (1 - m))
        negative = (c.detach() + m).clamp(min=0) * (c - m)
        return torch.where(true, positive, negative)


def _log_one_minus(log_p: Tensor) -> Tensor:
    """Return log(1 - exp(log_p)), finite at log_p = 0 too."""
    return torch.log1p(-log_p.exp().clamp(max=1 - torch.finfo(log_p.dtype).eps))
