"""Heads: an optional batch norm, and a linear classifier. B batch, D embedding, K classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from reidcore.types import HeadOut


class ClassifierHead(nn.Module):
    """A bias-free linear classifier, behind a batch norm when `neck` is set.

    The batch norm's shift stays 0, so that classification and retrieval share their origin (Luo et al. 2019).
    With 0 classes there is no classifier.
    """

    logits: Literal["linear"] = "linear"

    def __init__(self, dim: int, classes: int, neck: bool, embed: Literal["after", "before"] = "after") -> None:
        super().__init__()
        self.dim = dim
        self.embed = embed
        self.norm = nn.BatchNorm1d(dim) if neck else nn.Identity()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.bias.requires_grad_(False)
        self.classifier: nn.Linear | None = None
        self.resize(classes)

    def forward(self, x: Tensor) -> HeadOut:
        """(B, D) -> before (B, D), after (B, D), logits (B, K) or None."""
        after = self.norm(x)
        logits = None if self.classifier is None else self.classifier(after)
        return HeadOut(x, after, logits, embedding=after if self.embed == "after" else x)

    def resize(self, classes: int, rows: Tensor | None = None) -> None:
        """Replace the classifier by one of `classes` rows: (K, D) `rows`, or fresh ones from N(0, 0.01²)."""
        if not classes:
            self.classifier = None
            return
        like = next(self.parameters(), torch.empty(0))
        self.classifier = nn.Linear(self.dim, classes, bias=False, device=like.device)
        with torch.no_grad():
            if rows is None:
                nn.init.normal_(self.classifier.weight, std=0.01)
            else:
                self.classifier.weight.copy_(rows)
