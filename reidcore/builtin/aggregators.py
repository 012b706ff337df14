"""Aggregators of the core: pooling over all positions of a map (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl
from reidcore.kinds import Backbone

if TYPE_CHECKING:
    from reidcore.builtin.modules.pooling import Pooling


@frozen(kw_only=True)
class Average:
    """Average pooling (equation 2)."""

    source: str = option("", help="name of the map; the last one when empty")

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Pooling, average

        source = self.source or tuple(backbone.shapes)[-1]
        return Pooling(source, backbone.shapes[source], average)


@frozen(kw_only=True)
class Max:
    """Max pooling (equation 1)."""

    source: str = option("", help="name of the map; the last one when empty")

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Pooling, maximum

        source = self.source or tuple(backbone.shapes)[-1]
        return Pooling(source, backbone.shapes[source], maximum)


@frozen(kw_only=True)
class GeneralizedMean:
    """Generalized-mean pooling (equation 3; Radenović et al. 2018)."""

    source: str = option("", help="name of the map, which must not be signed; the last one when empty")
    alpha: float = option(3.0, help="exponent: 1 is the average, infinity the maximum", above=0)
    learn: bool = option(True, help="learn the exponent")

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import GeneralizedMean, Pooling

        source = self.source or tuple(backbone.shapes)[-1]
        return Pooling(source, backbone.shapes[source], GeneralizedMean(self.alpha, self.learn), positive=True)


@hookimpl
def reidcore_aggregators() -> Iterator[Component]:
    """Offer average, max and generalized-mean pooling."""
    yield Component(name="avg", config=Average)
    yield Component(name="max", config=Max)
    yield Component(name="gem", config=GeneralizedMean)
