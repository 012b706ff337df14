"""Transforms that make whole images partial or occluded: (3, H, W) uint8 RGB, by torch's global generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

T = TypeVar("T")


class PartialCrop:
    """Cut away one side of the image, with a probability, and resize what is left to (height, width).

    `kept` is a range of shares of the image.
    """

    resizes = True

    def __init__(
        self, height: int, width: int, probability: float, kept: tuple[float, float], sides: Sequence[str]
    ) -> None:
        self.size, self.probability, self.kept, self.sides = [height, width], probability, kept, sides

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, height, width)."""
        if _uniform(0, 1) < self.probability:
            image = _cut(image, _choice(self.sides), 1 - _uniform(*self.kept))[1]
        resized: Tensor = F.resize(image, self.size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return resized


class Occlusion:
    """Cover one side of the image, with a probability, with one random colour or with random pixels.

    `area` is a range of shares of the image.
    """

    resizes = False

    def __init__(self, probability: float, area: tuple[float, float], sides: Sequence[str], fill: str) -> None:
        self.probability, self.area, self.sides, self.fill = probability, area, sides, fill

    def __call__(self, image: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """(3, H, W), and the batch's others where `mixes` -> (3, H, W), a new tensor where it is covered."""
        if _uniform(0, 1) >= self.probability:
            return image
        image = image.clone()
        side, share = _choice(self.sides), _uniform(*self.area)
        _cut(image, side, share)[0].copy_(_cut(self._cover(image, others), side, share)[0])
        return image

    def _cover(self, image: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return what covers an image, as large as it."""
        shape = image.shape if self.fill == "noise" else (3, 1, 1)
        return torch.randint(0, 256, shape, dtype=torch.uint8).expand_as(image)


class Overlay(Occlusion):
    """Cover one side of the image, with a probability, with that side of another image of the batch, if there is one.

    After the occlusion simulator of Zhuo et al. (2018), who take parts of the background.
    """

    mixes = True

    def _cover(self, image: Tensor, others: Sequence[Tensor]) -> Tensor:
        if not others:
            return super()._cover(image, others)
        resized: Tensor = F.resize(_choice(others), list(image.shape[1:]), antialias=True)
        return resized


def _cut(image: Tensor, side: str, share: float) -> tuple[Tensor, Tensor]:
    """Return views of one side, a share of the image that leaves a pixel at least, and of the rest."""
    axis = 1 if side in ("top", "bottom") else 2
    length = image.shape[axis]
    cut = min(round(share * length), length - 1)
    if side in ("top", "left"):
        return image.narrow(axis, 0, cut), image.narrow(axis, cut, length - cut)
    return image.narrow(axis, length - cut, cut), image.narrow(axis, 0, length - cut)


def _choice(items: Sequence[T]) -> T:
    return items[int(torch.randint(len(items), ()))]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
