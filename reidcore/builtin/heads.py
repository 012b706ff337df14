"""Heads of the core (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.heads import ClassifierHead


@frozen(kw_only=True)
class Linear:
    """A linear classifier on the pooled vector."""

    def build(self, dim: int, classes: int) -> ClassifierHead:
        from reidcore.builtin.modules.heads import ClassifierHead

        return ClassifierHead(dim, classes, neck=False)


@frozen(kw_only=True)
class BNNeck:
    """Batch norm, then a bias-free classifier (equation 5; Luo et al. 2019)."""

    embed: Literal["after", "before"] = option(
        "after", help="whether retrieval compares what is after or before the norm"
    )

    def build(self, dim: int, classes: int) -> ClassifierHead:
        from reidcore.builtin.modules.heads import ClassifierHead

        return ClassifierHead(dim, classes, neck=True, embed=self.embed)


@hookimpl
def reidcore_heads() -> Iterator[Component]:
    """Offer the linear and the batch-norm head."""
    yield Component(name="linear", config=Linear)
    yield Component(name="bnneck", config=BNNeck)
