"""Losses of the core (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl
from reidcore.types import Parts

if TYPE_CHECKING:
    from reidcore.builtin.modules.losses import CrossEntropy as CrossEntropyLoss
    from reidcore.builtin.modules.losses import Triplet as TripletLoss

_ON = "views it is averaged over, all when empty; an inner array is a concatenation: ['b1', ['b21', 'b22']]"


@frozen(kw_only=True)
class CrossEntropy:
    """Softmax cross-entropy over the training identities, with label smoothing (equation 6)."""

    smoothing: float = option(0.1, help="probability moved from the true class to the others", at_least=0, below=1)
    on: tuple[str, ...] = option((), help="views it is averaged over, all when empty")

    def build(self, parts: Parts) -> CrossEntropyLoss:
        from reidcore.builtin.modules.losses import CrossEntropy

        return CrossEntropy(self.smoothing, self.on or tuple(parts.model.heads))


@frozen(kw_only=True)
class Triplet:
    """Triplet loss with the hardest positive and negative of the batch (Hermans et al. 2017)."""

    margin: float = option(0.3, help="margin between the distances", at_least=0)
    soft: bool = option(False, help="soft margin log(1 + exp(d_p - d_n)) instead of the margin")
    feature: Literal["before", "after"] = option("before", help="before or after the head's norm")
    normalize: bool = option(False, help="compare directions only")
    on: tuple[str | tuple[str, ...], ...] = option((), help=_ON)

    def build(self, parts: Parts) -> TripletLoss:
        from reidcore.builtin.modules.losses import Triplet

        on = self.on or tuple(parts.model.heads)
        return Triplet(None if self.soft else self.margin, self.feature, self.normalize, on)


@hookimpl
def reidcore_losses() -> Iterator[Component]:
    """Offer cross-entropy and triplet."""
    yield Component(name="cross-entropy", config=CrossEntropy)
    yield Component(name="triplet", config=Triplet)
