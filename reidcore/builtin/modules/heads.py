"""Heads: a neck or none, and a classifier. B batch, D embedding, K classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidcore.errors import ContractError
from reidcore.types import HeadOut


def cosines(x: Tensor, rows: Tensor) -> Tensor:
    """(B, D), (K, D) -> (B, K) cosines of their angles, in float32."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.linear(F.normalize(x), F.normalize(rows))


class ClassifierHead(nn.Module):
    """A bias-free classifier, behind a batch norm when `neck` is set (equation 5).

    The batch norm's shift stays 0, so that classification and retrieval share their origin (Luo et al. 2019).
    `logits` "linear" are products of feature and rows; "cosine" are the cosines between them, without scale or margin.
    With 0 classes there is no classifier.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        neck: bool,
        embed: Literal["after", "before"] = "after",
        logits: Literal["linear", "cosine"] = "linear",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embed = embed
        self.logits = logits
        self.norm = nn.BatchNorm1d(dim) if neck else nn.Identity()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.bias.requires_grad_(False)
        self.classifier: nn.Linear | None = None
        self.resize(classes)

    def forward(self, x: Tensor) -> HeadOut:
        """(B, D) -> before (B, D), after (B, D), logits (B, K) or None."""
        after = self.norm(x)
        logits = None
        if self.classifier is not None:
            logits = cosines(after, self.classifier.weight) if self.logits == "cosine" else self.classifier(after)
        return HeadOut(x, after, logits, embedding=after if self.embed == "after" else x)

    def resize(self, classes: int, rows: Tensor | None = None) -> None:
        """Replace the classifier by one of `classes` rows: (K, D) `rows`, or fresh ones from N(0, 0.01²).

        Raises ContractError when `rows` has another shape.
        """
        if rows is not None and rows.shape != (classes, self.dim):
            raise ContractError(
                f"head: found classifier rows of shape {tuple(rows.shape)}; expected {(classes, self.dim)}, "
                "one row a class"
            )
        if not classes:
            self.classifier = None
            return
        like = next(self.parameters(), torch.empty(0))
        self.classifier = nn.Linear(self.dim, classes, bias=False, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            if rows is None:
                nn.init.normal_(self.classifier.weight, std=0.01)
            else:
                self.classifier.weight.copy_(rows)


class ReductionHead(ClassifierHead):
    """A layer with batch norm, ReLU and dropout, one that reduces to `dim`, and a classifier (paper, Figure 3).

    The paper's convolutions are linear layers, since they see one position. The first keeps the width `channels`. What
    is reduced is compared and classified as it is: no norm follows.
    """

    def __init__(
        self, channels: int, classes: int, dim: int, dropout: float, logits: Literal["linear", "cosine"] = "linear"
    ) -> None:
        super().__init__(dim, classes, neck=False, logits=logits)
        self.reduction = nn.Sequential(
            nn.Linear(channels, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, dim, bias=False),
        )
        for module in self.reduction:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> HeadOut:
        """(B, C) -> before and after (B, D), the same, and logits (B, K) or None."""
        return super().forward(self.reduction(x))


class FullyConnectedHead(ClassifierHead):
    """A linear layer to `dim` with batch norm and ReLU, and a classifier (Zhou et al. 2019).

    What comes out of the ReLU is compared and classified as it is: no norm follows.
    """

    def __init__(self, channels: int, classes: int, dim: int, logits: Literal["linear", "cosine"] = "linear") -> None:
        super().__init__(dim, classes, neck=False, logits=logits)
        self.fc = nn.Sequential(nn.Linear(channels, dim), nn.BatchNorm1d(dim), nn.ReLU())
        nn.init.normal_(self.fc[0].weight, std=0.01)  # type: ignore[arg-type]
        nn.init.zeros_(self.fc[0].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> HeadOut:
        """(B, C) -> before and after (B, D), the same and at least 0, and logits (B, K) or None."""
        return super().forward(self.fc(x))
