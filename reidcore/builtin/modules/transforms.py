"""Transforms of one image, (3, H, W) uint8 RGB. Random numbers come from torch's global generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from reidcore.errors import DataError

_MEAN = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]


class Resize:
    """Resize to (height, width), antialiased."""

    resizes = True
    random = False

    def __init__(self, height: int, width: int, interpolation: Literal["bicubic", "bilinear"] = "bicubic") -> None:
        self.size = [height, width]
        self.interpolation = InterpolationMode(interpolation)

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, height, width), or (B, 3, H, W) -> (B, 3, height, width)."""
        if list(image.shape[-2:]) == self.size:
            return image
        resized: Tensor = F.resize(image, self.size, interpolation=self.interpolation, antialias=True)
        return resized


class Flip:
    """Mirror the image with a probability."""

    resizes = False

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, H, W)."""
        return image.flip(2) if _uniform(0, 1) < self.probability else image


class PadCrop:
    """Pad all sides with `fill`, then crop (height, width) at a random place."""

    resizes = False

    def __init__(self, height: int, width: int, padding: int, fill: int) -> None:
        self.height, self.width, self.padding, self.fill = height, width, padding, fill

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, height, width). Raises DataError when even the padded image is smaller."""
        height, width = (size + 2 * self.padding for size in image.shape[1:])
        if height < self.height or width < self.width:
            found = f"{image.shape[1]}x{image.shape[2]}"
            raise DataError(
                f"transform: pad-crop got an image of {found} pixels, too small to crop {self.height}x{self.width} "
                "from; place 'resize' before it"
            )
        # where the image begins and ends, seen from the crop
        top = self.padding - _integer(height - self.height + 1)
        left = self.padding - _integer(width - self.width + 1)
        bottom, right = image.shape[1] + top, image.shape[2] + left
        crop = image.new_full((self.height, self.width, 3), self.fill)  # a few times as fast as padding it all
        seen = image[:, max(0, -top) : max(0, self.height - top), max(0, -left) : max(0, self.width - left)]
        crop[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = seen.permute(1, 2, 0)
        return crop.permute(2, 0, 1)


class RandomResizedCrop:
    """Crop a rectangle and resize it to (height, width).

    `area` is a range of shares of the image, `ratio` one of the rectangle's width over height against the image's own,
    uniform in its logarithm, so that a tall image stays a tall one. A rectangle larger than the image shows it smaller,
    with its edges extended: with shares on both sides of 1 things are as large in training as in testing, which they
    are not when every crop enlarges (Touvron et al. 2019).
    """

    resizes = True

    def __init__(self, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]) -> None:
        self.resize, self.area, self.ratio = Resize(height, width), area, ratio

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, height, width)."""
        _, height, width = image.shape
        area = _uniform(*self.area)
        ratio = math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        h = max(1, round(height * math.sqrt(area / ratio)))
        w = max(1, round(width * math.sqrt(area * ratio)))
        top, bottom = _border(height, h)
        left, right = _border(width, w)
        if top or bottom or left or right:
            image = F.pad(image, [left, top, right, bottom], padding_mode="edge")
        row, column = _integer(image.shape[1] - h + 1), _integer(image.shape[2] - w + 1)
        return self.resize(image[:, row : row + h, column : column + w])


class RandomApply(v2.RandomApply):  # type: ignore[misc]
    """torchvision's transforms of an image that keep its size, with a probability."""

    resizes = False


class RandomErasing:
    """Erase a rectangle of random place, area and shape (Zhong et al. 2020).

    `area` is a range of shares of the image, `ratio` a range of height over width, uniform in its logarithm. A
    rectangle that does not fit is drawn again, ten times at most; then nothing is erased.
    """

    resizes = False

    def __init__(
        self,
        probability: float,
        area: tuple[float, float],
        ratio: tuple[float, float],
        fill: Literal["mean", "random", "zero"],
    ) -> None:
        self.probability, self.area, self.ratio, self.fill = probability, area, ratio, fill

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, H, W), a new tensor where something is erased."""
        if _uniform(0, 1) >= self.probability:
            return image
        _, height, width = image.shape
        h, w = _rectangle(height, width, self.area, self.ratio)
        image = image.clone()
        _window(image, h, w).copy_(self._colours(h, w))
        return image

    def _colours(self, h: int, w: int) -> Tensor:
        if self.fill == "random":
            return torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
        return _MEAN if self.fill == "mean" else torch.zeros_like(_MEAN)


class RandomPatch:
    """Paste a rectangle of another image of the batch.

    After Zhou et al. (2019), who take it from a pool that they fill in passing, and turn it.

    `area` and `ratio` are as in `RandomErasing`, of the size that fits into both images. The place that the rectangle
    is taken from and the one that it is pasted at are drawn independently.
    """

    resizes = False
    mixes = True

    def __init__(self, probability: float, area: tuple[float, float], ratio: tuple[float, float]) -> None:
        self.probability, self.area, self.ratio = probability, area, ratio

    def __call__(self, image: Tensor, others: Sequence[Tensor]) -> Tensor:
        """(3, H, W) and others of any size -> (3, H, W), a new tensor where something is pasted."""
        if not others or _uniform(0, 1) >= self.probability:
            return image
        other = others[_integer(len(others))]
        height, width = map(min, image.shape[1:], other.shape[1:])
        h, w = _rectangle(height, width, self.area, self.ratio)
        image = image.clone()
        _window(image, h, w).copy_(_window(other, h, w))
        return image


class Cutout:
    """Cut out a square of zeros (DeVries and Taylor 2017): black pixels, as the paper of FastReID has it.

    Its side is `size` times the image's shorter side, its centre any pixel, so that the border may cut it off.
    """

    resizes = False

    def __init__(self, probability: float, size: float) -> None:
        self.probability, self.size = probability, size

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, H, W), a new tensor where something is cut out."""
        if _uniform(0, 1) >= self.probability:
            return image
        _, height, width = image.shape
        side = max(1, round(self.size * min(height, width)))
        top, left = _integer(height) - side // 2, _integer(width) - side // 2
        image = image.clone()
        image[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        return image


def _rectangle(height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int]:
    """Return the height and width of a random rectangle that is smaller than an image, or (0, 0) after ten failures."""
    for _ in range(10):
        pixels = height * width * _uniform(*area)
        shape = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < h < height and 0 < w < width:
            return h, w
    return 0, 0


def _window(image: Tensor, h: int, w: int) -> Tensor:
    """Return a view of a random part of `h` by `w` pixels."""
    top, left = _integer(image.shape[1] - h + 1), _integer(image.shape[2] - w + 1)
    return image[:, top : top + h, left : left + w]


def _border(size: int, wanted: int) -> tuple[int, int]:
    """Return how much to add before and after `size` pixels to have the wanted number, at random."""
    missing = max(0, wanted - size)
    before = _integer(missing + 1)
    return before, missing - before


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))
