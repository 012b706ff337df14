"""The network: plain torch with plain arguments. B batch, C channels, H W height and width of the images."""

import copy

from reidcore.types import MapShape
from torch import nn


class Example(nn.Module):
    """Three convolutions of stride 2. It offers the maps `stage1` to `stage3`, at 1/2, 1/4 and 1/8 of the image."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels, 0..1, that the weights were trained with

    def __init__(self, channels, height, width):
        super().__init__()
        self.stages, self.shapes, before = nn.ModuleList(), {}, 3
        for number in (1, 2, 3):
            convolution = nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False)
            self.stages.append(nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU()))
            height, width, before = -(-height // 2), -(-width // 2), channels
            self.shapes[f"stage{number}"] = MapShape(channels, height, width)  # signed=True for maps below 0

    def forward(self, images, want, cameras=None):
        """(B, 3, H, W) normalised -> {name: (B, C, ., .)} for the names in `want`; cameras: (B,), -1 where unknown."""
        maps, x = {}, images
        for name, stage in zip(self.shapes, self.stages, strict=True):
            x = stage(x)
            if name in want:
                maps[name] = x
        return maps

    def tail(self, after):
        """Return a copy of the stages after map `after`, for aggregators with branches of their own."""
        return nn.Sequential(*copy.deepcopy(self.stages[list(self.shapes).index(after) + 1 :]))
