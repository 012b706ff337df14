"""The aggregator: cells of several sizes, and the view of what stands in the foreground.

B batch, C channels, H W map, N cells, n cells of the smallest size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidcore.types import Extra, MapShape, Views


class Pyramid(nn.Module):
    """Max-pools a map in windows of several sizes; what it pools are cells (FastReID, Figure 8).

    A linear layer with a sigmoid, shared by all cells, says how much of each is foreground. The view `foreground` is
    the mean of the first window's cells with these as weights, and what is compared; the view `global` is the mean of
    the map. In evaluation there are the extras `cells`, (N, C) float16 of length 1, and `weights`, (N,), which say how
    much of the image's foreground each is, and sum to 1.
    """

    embed = ("foreground",)

    def __init__(self, source: str, shape: MapShape, windows: Sequence[int], stride: int) -> None:
        super().__init__()
        self.needs = (source,)
        self.views = {"global": shape.channels, "foreground": shape.channels}
        self.windows, self.stride = tuple(windows), stride
        sides = [[(side - window) // stride + 1 for side in (shape.height, shape.width)] for window in windows]
        count = sum(height * width for height, width in sides)
        self.extras = {"cells": Extra((count, shape.channels)), "weights": Extra((count,))}
        self.foreground = nn.Linear(shape.channels, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Views:
        """`{source: (B, C, H, W)}` -> the views, (B, C) each; in evaluation the extras too."""
        x = maps[self.needs[0]]
        small = self._cells(x, self.windows[0])
        vectors = {
            "global": x.mean((2, 3)),
            "foreground": (self._shares(small)[:, None] @ small.float()).squeeze(1).to(x.dtype),
        }
        if self.training:
            return Views(vectors)
        cells = torch.cat([small, *(self._cells(x, window) for window in self.windows[1:])], 1)
        return Views(vectors, {"cells": F.normalize(cells.float(), dim=2).half(), "weights": self._shares(cells)})

    def _cells(self, x: Tensor, window: int) -> Tensor:
        """(B, C, H, W) -> (B, n, C), row by row of the map."""
        return F.max_pool2d(x, window, self.stride).flatten(2).transpose(1, 2)

    def _shares(self, cells: Tensor) -> Tensor:
        """(B, N, C) -> (B, N) float32, how much of the foreground is in each; they sum to 1."""
        scores: Tensor = self.foreground(cells).squeeze(2).float().sigmoid()
        return F.normalize(scores, p=1, dim=1)
