"""Loggers of the core, beside the terminal and `log.jsonl`, which every run has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore.component import Component
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules import loggers


@frozen(kw_only=True)
class TensorBoard:
    """Curves and texts for TensorBoard, in `tensorboard/` of the run folder."""

    def build(self, folder: Path) -> loggers.TensorBoard:
        from reidcore.builtin.modules.loggers import TensorBoard

        return TensorBoard(folder)


@hookimpl
def reidcore_loggers() -> Iterator[Component]:
    """Offer TensorBoard."""
    yield Component(name="tensorboard", config=TensorBoard)
