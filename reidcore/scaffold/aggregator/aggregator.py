"""The pooling: plain torch with plain arguments. B batch, C channels, H W map, k positions that count."""

import math

from reidcore.types import Views
from torch import nn


class Example(nn.Module):
    """The mean of the k largest activations of each channel."""

    def __init__(self, source, channels, share):
        super().__init__()
        self.share = share
        self.needs = (source,)  # the maps that it reads
        self.views = {"global": channels}  # the vectors that it makes, with their dimension
        self.embed = ("global",)  # those that the embedding is made of
        self.extras = {}  # what else it makes, for post-processors: {name: Extra(shape)}

    def forward(self, maps):
        """{map: (B, C, H, W)} -> one view, (B, C)."""
        x = maps[self.needs[0]].flatten(2)  # (B, C, HW)
        return Views({"global": x.topk(math.ceil(self.share * x.shape[2])).values.mean(2)})
