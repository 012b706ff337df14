"""The loss: plain torch with plain arguments. B batch, D embedding."""

import torch
from reidcore.types import Needs
from torch import nn
from torch.nn import functional as F


class Example(nn.Module):
    """Mean over all pairs of 1 - cos for the same identity, max(0, cos - margin) for others (Hadsell et al. 2006)."""

    needs = Needs()  # or the views, maps and kind of logits that it reads

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, output, batch, step):
        """output.embedding: (B, D); batch.labels: (B,), -1 where unknown -> {"example": scalar}."""
        known = batch.labels >= 0
        with torch.autocast(output.embedding.device.type, enabled=False):  # sums of many numbers want float32
            x, labels = F.normalize(output.embedding[known].float()), batch.labels[known]
            cosines = x @ x.T
            same = labels[:, None] == labels
            apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            terms = torch.where(same, 1 - cosines, (cosines - self.margin).clamp(min=0))[apart]
            return {"example": terms.sum() / max(1, len(terms))}  # 0, not NaN, for a batch without a pair
