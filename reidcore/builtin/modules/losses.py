"""Cross-entropy and triplet loss. B batch, D embedding, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidcore.types import Batch, Needs, Output, Step


class CrossEntropy(nn.Module):
    """Softmax cross-entropy with smoothed labels (paper, section 4.1).

    The true class has the target 1 - smoothing and each other one smoothing / (K - 1). Images without a class are
    left out; a batch without any labelled image gives 0.
    """

    def __init__(self, smoothing: float, on: Sequence[str]) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.on = tuple(on)
        self.needs = Needs(views=self.on, logits="linear")

    def forward(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return `{"cross-entropy": scalar}`."""
        known = batch.labels >= 0
        terms = [self._one(output.logits[view].float()[known], batch.labels[known]) for view in self.on]
        return {"cross-entropy": torch.stack(terms).mean()}

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not len(labels):
            return logits.sum()
        log_p = logits.log_softmax(1)
        true = log_p.gather(1, labels[:, None]).squeeze(1)
        others = (log_p.sum(1) - true) / max(1, logits.shape[1] - 1)
        return -((1 - self.smoothing) * true + self.smoothing * others).mean()


class Triplet(nn.Module):
    """Batch-hard triplet loss: each anchor with its farthest positive and nearest negative (Hermans et al. 2017).

    `margin` None is the soft margin log(1 + exp(d_p - d_n)). `on` names views; a group of names is a concatenation.
    Anchors without a positive or without a negative are left out; a batch without any anchor gives 0.
    """

    def __init__(
        self,
        margin: float | None,
        feature: Literal["before", "after"],
        normalize: bool,
        on: Sequence[str | Sequence[str]],
    ) -> None:
        super().__init__()
        self.margin = margin
        self.feature = feature
        self.normalize = normalize
        self.groups = tuple((item,) if isinstance(item, str) else tuple(item) for item in on)
        self.needs = Needs(views=tuple(dict.fromkeys(view for group in self.groups for view in group)))

    def forward(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return `{"triplet": scalar}`."""
        features = getattr(output, self.feature)
        terms = [self._one(torch.cat([features[view] for view in group], 1), batch.labels) for group in self.groups]
        return {"triplet": torch.stack(terms).mean()}

    def _one(self, x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # differences of squares need all digits
            x = F.normalize(x.float()) if self.normalize else x.float()
            distance = pairwise_distance(x)
        known = labels >= 0
        same = labels[:, None] == labels[None, :]
        positive = same & known[:, None] & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        negative = ~same & known[:, None] & known[None, :]
        anchors = positive.any(1) & negative.any(1)
        if not anchors.any():
            return x.sum() * 0
        farthest = distance.masked_fill(~positive, -torch.inf).amax(1)[anchors]
        nearest = distance.masked_fill(~negative, torch.inf).amin(1)[anchors]
        gap = farthest - nearest
        return (F.softplus(gap) if self.margin is None else F.relu(gap + self.margin)).mean()


def pairwise_distance(x: Tensor) -> Tensor:
    """(B, D) -> (B, B) euclidean distances; the gradient is finite at distance 0."""
    squares = x.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2 * x @ x.T
    return squared.clamp(min=1e-12).sqrt()
