"""Tasks of the core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore.component import Component
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.train import Train as TrainTask


@frozen(kw_only=True)
class Train:
    """Supervised training on labelled images."""

    def build(self) -> TrainTask:
        from reidcore.builtin.modules.train import Train

        return Train()


@hookimpl
def reidcore_tasks() -> Iterator[Component]:
    """Offer supervised training."""
    yield Component(name="train", config=Train)
