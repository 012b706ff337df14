"""Partial re-identification by deep spatial reconstruction: aggregator, post-processor, data sets and transforms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore import Component, hookimpl
from reidcore.component import option
from reidcore.errors import ContractError
from reidcore.kinds import Backbone
from reidcore.types import Splits

if TYPE_CHECKING:
    from reid_dsr.pyramid import Pyramid
    from reid_dsr.transforms import Occlusion as OcclusionTransform
    from reid_dsr.transforms import PartialCrop as PartialCropTransform
    from reidcore.kinds import Postprocessor

Side = Literal["top", "bottom", "left", "right"]
SIDES: tuple[Side, ...] = ("top", "bottom", "left", "right")


@frozen(kw_only=True)
class DSR:
    """A pyramid of max-pooled cells, with a view of the foreground among them (FastReID, section 7.3, Figure 8)."""

    source: str = option("", help="name of the map; the last one when empty")
    windows: tuple[int, ...] = option(
        (2, 4, 6, 8), help="sides of the pooled windows; the cells of the first make the foreground's view", at_least=1
    )
    stride: int = option(2, help="positions between windows", at_least=1)

    def build(self, backbone: Backbone) -> Pyramid:
        from reid_dsr.pyramid import Pyramid

        source = self.source or tuple(backbone.shapes)[-1]
        shape = backbone.shapes[source]
        if max(self.windows) > min(shape.height, shape.width):
            fitting = [window for window in self.windows if window <= min(shape.height, shape.width)]
            raise ContractError(
                f"aggregator: map '{source}' has {shape.height}x{shape.width} positions, and dsr's windows reach "
                f"{max(self.windows)}; write windows = {fitting or [1]}, or a larger input size"
            )
        return Pyramid(source, shape, self.windows, self.stride)

    def __attrs_post_init__(self) -> None:
        if not self.windows:
            raise ValueError("windows: found none; expected one or several")


@frozen(kw_only=True)
class Rescoring:
    """Compares each query with its nearest images again, cell by cell: deep spatial reconstruction (He et al. 2018)."""

    match: Literal["reconstruction", "best"] = option(
        "reconstruction",
        help="what a query's cell is compared with: the best mixture of the image's cells, or the best of them",
    )
    k: int = option(100, help="images to compare with, the nearest by the embedding's distance", at_least=1)
    blend: float | Literal["holdout"] = option(
        0.5,
        help="share of the cells' distance, lambda in the reference system; 'holdout': chosen by mAP on training "
        "identities that evaluation.holdout keeps out",
        at_least=0,
        at_most=1,
    )
    ridge: float = option(1e-3, help="of the reconstruction: how much mixing is held down", at_least=1e-8)

    def build(self) -> Postprocessor:
        from reid_dsr.rescoring import Choosing, Rescoring

        if isinstance(self.blend, str):
            return Choosing(Rescoring(self.match, self.k, 1.0, self.ridge))
        return Rescoring(self.match, self.k, self.blend, self.ridge)


@frozen(kw_only=True)
class PartialReID:
    """Partial-REID (Zheng et al. 2015): 60 people, 300 partial queries in a gallery of 300 whole images."""

    root: Path = option(help="folder that holds partial_body_images/ and whole_body_images/")

    def build(self) -> Splits:
        from reid_dsr.datasets import read

        return read(self.root, [("partial_body_images", "whole_body_images")], (300, 300))


@frozen(kw_only=True)
class PartialILIDS:
    """Partial-iLIDS (He et al. 2018): 119 people, a partial query and a whole image of each."""

    root: Path = option(help="folder that holds query/ and gallery/, or Probe/ and Gallery/")

    def build(self) -> Splits:
        from reid_dsr.datasets import read

        return read(self.root, [("query", "gallery"), ("Probe", "Gallery")], (119, 119))


@frozen(kw_only=True)
class OccludedReID:
    """Occluded-REID (Zhuo et al. 2018): 200 people, 1000 occluded queries in a gallery of 1000 whole images."""

    root: Path = option(help="folder that holds query/ and gallery/, or occluded_body_images/ and whole_body_images/")

    def build(self) -> Splits:
        from reid_dsr.datasets import read

        return read(self.root, [("query", "gallery"), ("occluded_body_images", "whole_body_images")], (1000, 1000))


@frozen(kw_only=True)
class PartialCrop:
    """Cut away one side of the image, and resize what is left to the input size."""

    probability: float = option(1.0, help="how often; other images are resized whole", at_least=0, at_most=1)
    kept: tuple[float, float] = option(
        (0.3, 0.7), help="smallest and largest share of the image that is left", above=0, at_most=1
    )
    sides: tuple[Side, ...] = option(SIDES, help="the sides to cut from, one of them at random")

    def build(self, height: int, width: int) -> PartialCropTransform:
        from reid_dsr.transforms import PartialCrop

        return PartialCrop(height, width, self.probability, self.kept, self.sides)

    def __attrs_post_init__(self) -> None:
        _check("kept", self.kept, self.sides)


@frozen(kw_only=True)
class Occlusion:
    """Cover one side of the image, as something that stands before it does."""

    probability: float = option(0.5, help="how often", at_least=0, at_most=1)
    area: tuple[float, float] = option(
        (0.1, 0.5), help="smallest and largest share of the image that is covered", above=0, at_most=1
    )
    sides: tuple[Side, ...] = option(SIDES, help="the sides to cover, one of them at random")
    fill: Literal["color", "noise", "image"] = option(
        "color", help="with a random colour, with random pixels, or with that side of another image of the batch"
    )

    def build(self, height: int, width: int) -> OcclusionTransform:
        from reid_dsr.transforms import Occlusion, Overlay

        return (Overlay if self.fill == "image" else Occlusion)(self.probability, self.area, self.sides, self.fill)

    def __attrs_post_init__(self) -> None:
        _check("area", self.area, self.sides)


def _check(name: str, shares: tuple[float, float], sides: tuple[Side, ...]) -> None:
    if shares[0] > shares[1]:
        raise ValueError(f"{name}: found {shares[0]} above {shares[1]}; expected the smaller one first")
    if not sides:
        raise ValueError("sides: found none; expected one or several of top, bottom, left, right")


@hookimpl
def reidcore_aggregators() -> Iterator[Component]:
    """Offer the pyramid."""
    yield Component(name="dsr", config=DSR)


@hookimpl
def reidcore_postprocessors() -> Iterator[Component]:
    """Offer the comparison by cells."""
    yield Component(name="dsr", config=Rescoring)


@hookimpl
def reidcore_datasets() -> Iterator[Component]:
    """Offer the test sets of partial and occluded people."""
    yield Component(name="partial-reid", config=PartialReID)
    yield Component(name="partial-ilids", config=PartialILIDS)
    yield Component(name="occluded-reid", config=OccludedReID)


@hookimpl
def reidcore_transforms() -> Iterator[Component]:
    """Offer what makes whole images partial ones."""
    yield Component(name="partial-crop", config=PartialCrop)
    yield Component(name="occlusion", config=Occlusion)
