"""What the configs build: plain torch modules with plain arguments. B batch, C channels, H W map."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from reidcore.types import MapShape, Needs


class TinyNet(nn.Module):
    """Three convolutions of stride 2; it offers one map, `last`, at 1/8 of the image."""

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, channels, height, width):
        super().__init__()
        widths = (3, 16, 24, channels)
        layers = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            height, width = -(-height // 2), -(-width // 2)
        self.layers = nn.Sequential(*layers)
        self.shapes = {"last": MapShape(channels, height, width)}

    def forward(self, images, want, cameras=None):
        """(B, 3, H, W) -> {"last": (B, C, H/8, W/8)}."""
        return {"last": self.layers(images)}

    def tail(self, after):
        """Nothing follows the only map."""
        return nn.Sequential()


class Spread(nn.Module):
    """Mean of exp(scale * cosine) over all pairs of the batch."""

    needs = Needs()

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, output, batch, step):
        """Return {"spread": scalar}."""
        x = F.normalize(output.embedding.float())
        pairs = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        return {"spread": (self.scale * (x @ x.T))[pairs].exp().mean()}
