"""Data sets in general forms, and one that draws itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl
from reidcore.types import Splits


@frozen(kw_only=True)
class Folder:
    """Folders train/, query/ and gallery/ of files `<identity>_c<camera>_<anything>.<ext>`."""

    root: Path = option(help="folder that holds train/, query/ and gallery/")

    def build(self) -> Splits:
        from reidcore.builtin.modules.datasets import folder

        return folder(self.root)


@frozen(kw_only=True)
class Csv:
    """A table with the columns path, identity, camera and split (train, query or gallery)."""

    file: Path = option(help="the table; paths in it are relative to its folder")

    def build(self) -> Splits:
        from reidcore.builtin.modules.datasets import csv_table

        return csv_table(self.file)


@frozen(kw_only=True)
class LFW:
    """Pairs to verify in the form of Labeled Faces in the Wild (Huang et al. 2007): for the protocol verification."""

    protocol: ClassVar = "verification"

    root: Path = option(help="folder that holds <name>/<name>_<0001>.jpg")
    pairs: Path = option(help="the list: lines '<name> <n> <m>' and '<name> <n> <other name> <m>'")

    def build(self) -> Splits:
        from reidcore.builtin.modules.datasets import lfw

        return lfw(self.root, self.pairs)


@frozen(kw_only=True)
class Synthetic:
    """Person-like figures that are drawn when they are needed: no download, any size."""

    identities: int = option(125, help="people to train on", at_least=1)
    test_identities: int = option(60, help="other people to test on", at_least=1)
    camera_count: int = option(4, help="cameras, each of which sees everybody", at_least=2)
    images: int = option(4, help="images of each person by each camera", at_least=2)
    height: int = option(128, help="pixels of the drawn image", at_least=16)
    width: int = option(64, help="pixels of the drawn image", at_least=8)
    occluded: float = option(0.0, help="share of the images in which something hides a part", at_least=0, at_most=1)
    domain: Literal["street", "night", "snow", "indoor"] = option("street", help="the look of scenes and clothes")
    seed: int = option(0, help="other people and scenes for another number", at_least=0)

    def build(self) -> Splits:
        from reidcore.builtin.modules.synthetic import splits

        return splits(
            identities=self.identities,
            test_identities=self.test_identities,
            cameras=self.camera_count,
            images=self.images,
            height=self.height,
            width=self.width,
            occluded=self.occluded,
            domain=self.domain,
            seed=self.seed,
        )


@hookimpl
def reidcore_datasets() -> Iterator[Component]:
    """Offer data sets in general forms, and drawings."""
    yield Component(name="folder", config=Folder)
    yield Component(name="csv", config=Csv)
    yield Component(name="lfw", config=LFW)
    yield Component(name="synthetic", config=Synthetic)
