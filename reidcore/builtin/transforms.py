"""Transforms of the core (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules import transforms as modules


@frozen(kw_only=True)
class Resize:
    """Resize to the input size; done first when no transform of the recipe resizes."""

    interpolation: Literal["bicubic", "bilinear"] = option("bicubic", help="antialiased in either case")

    def build(self, height: int, width: int) -> modules.Resize:
        from reidcore.builtin.modules.transforms import Resize

        return Resize(height, width, self.interpolation)


@frozen(kw_only=True)
class Flip:
    """Mirror the image left to right."""

    probability: float = option(0.5, help="how often", at_least=0, at_most=1)

    def build(self, height: int, width: int) -> modules.Flip:
        from reidcore.builtin.modules.transforms import Flip

        return Flip(self.probability)


@frozen(kw_only=True)
class PadCrop:
    """Pad on all sides, then crop the input size at random."""

    padding: int = option(10, help="pixels on each side", at_least=0)
    fill: int = option(0, help="value of the padding", at_least=0, at_most=255)

    def build(self, height: int, width: int) -> modules.PadCrop:
        from reidcore.builtin.modules.transforms import PadCrop

        return PadCrop(height, width, self.padding, self.fill)


@frozen(kw_only=True)
class RandomResizedCrop:
    """Crop a part of random size, place and shape, and resize it to the input size."""

    area: tuple[float, float] = option(
        (0.5, 1.0), help="smallest and largest share of the image; above 1 it is shown smaller, edges extended", above=0
    )
    ratio: tuple[float, float] = option(
        (0.75, 1.3333), help="smallest and largest change of width over height, against the image's", above=0
    )

    def build(self, height: int, width: int) -> modules.RandomResizedCrop:
        from reidcore.builtin.modules.transforms import RandomResizedCrop

        return RandomResizedCrop(height, width, self.area, self.ratio)

    def __attrs_post_init__(self) -> None:
        _require_ranges(area=self.area, ratio=self.ratio)


@frozen(kw_only=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue at random, each by at most its amount, in random order."""

    probability: float = option(1.0, help="how often", at_least=0, at_most=1)
    brightness: float = option(0.2, help="factor from 1 - this to 1 + this", at_least=0, at_most=1)
    contrast: float = option(0.2, help="factor from 1 - this to 1 + this", at_least=0, at_most=1)
    saturation: float = option(0.0, help="factor from 1 - this to 1 + this", at_least=0, at_most=1)
    hue: float = option(0.0, help="turn of the colour circle, at most half of it", at_least=0, at_most=0.5)

    def build(self, height: int, width: int) -> modules.ColorJitter:
        from reidcore.builtin.modules.transforms import ColorJitter

        return ColorJitter(self.probability, self.brightness, self.contrast, self.saturation, self.hue)


@frozen(kw_only=True)
class RandomErasing:
    """Erase a rectangle (Zhong et al. 2020)."""

    probability: float = option(0.5, help="how often", at_least=0, at_most=1)
    area: tuple[float, float] = option((0.02, 0.33), help="smallest and largest share of the image", above=0, at_most=1)
    ratio: tuple[float, float] = option((0.3, 3.3), help="smallest and largest height over width", above=0)
    fill: Literal["mean", "random", "zero"] = option("mean", help="ImageNet's mean colour, noise or black")

    def build(self, height: int, width: int) -> modules.RandomErasing:
        from reidcore.builtin.modules.transforms import RandomErasing

        return RandomErasing(self.probability, self.area, self.ratio, self.fill)

    def __attrs_post_init__(self) -> None:
        _require_ranges(area=self.area, ratio=self.ratio)


def _require_ranges(**ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        if low > high:
            raise ValueError(f"{name}: found {low} above {high}; expected the smaller one first")


@hookimpl
def reidcore_transforms() -> Iterator[Component]:
    """Offer what changes training images."""
    yield Component(name="resize", config=Resize)
    yield Component(name="flip", config=Flip)
    yield Component(name="pad-crop", config=PadCrop)
    yield Component(name="random-resized-crop", config=RandomResizedCrop)
    yield Component(name="color-jitter", config=ColorJitter)
    yield Component(name="random-erasing", config=RandomErasing)
