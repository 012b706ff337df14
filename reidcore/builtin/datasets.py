"""Data sets of the core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
class Market1501:
    """Market-1501 (Zheng et al. 2015): 751 + 750 people, 6 cameras."""

    root: Path = option(help="folder that holds bounding_box_train/, query/ and bounding_box_test/")

    def build(self) -> Splits:
        from reidcore.builtin.modules.datasets import market1501

        return market1501(self.root)


@hookimpl
def reidcore_datasets() -> Iterator[Component]:
    """Offer folder, csv, market1501 and synthetic."""
    yield Component(name="folder", config=Folder)
    yield Component(name="csv", config=Csv)
    yield Component(name="market1501", config=Market1501)
