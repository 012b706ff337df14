"""The head: plain torch with plain arguments. B batch, D embedding, K classes."""

import torch
from reidcore.types import HeadOut
from torch import nn


class Example(nn.Module):
    """A layer norm, whose result is the embedding, and a classifier without bias."""

    logits = "linear"  # products with the classifier's rows; "cosine" where they are cosines

    def __init__(self, dim, classes, epsilon):
        super().__init__()
        self.dim = dim  # of what it puts out
        self.norm = nn.LayerNorm(dim, epsilon)
        self.resize(classes)

    def forward(self, x):
        """(B, D) -> before the norm (B, D), after it (B, D), logits (B, K) or None."""
        after = self.norm(x)
        return HeadOut(x, after, None if self.classifier is None else self.classifier(after))

    def resize(self, classes, rows=None):
        """Replace the classifier by one of `classes` rows: (K, D) `rows` if given, else fresh ones."""
        self.classifier = None
        if classes:
            like = self.norm.weight
            self.classifier = nn.Linear(self.dim, classes, bias=False, device=like.device, dtype=like.dtype)
            with torch.no_grad():
                if rows is None:
                    nn.init.normal_(self.classifier.weight, std=0.01)
                else:
                    self.classifier.weight.copy_(rows)
