"""Aggregators of the core: pooling over all positions of a map (paper, section 3.3), and the branches of MGN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.errors import ContractError
from reidcore.hookspecs import hookimpl
from reidcore.kinds import Backbone
from reidcore.types import MapShape

if TYPE_CHECKING:
    from torch import Tensor

    from reidcore.builtin.modules.mgn import MultipleGranularity
    from reidcore.builtin.modules.pooling import Pooling


@frozen(kw_only=True)
class _OfMap:
    source: str = option("", help="name of the map; the last one when empty")

    def map(self, backbone: Backbone) -> tuple[str, MapShape]:
        source = self.source or tuple(backbone.shapes)[-1]
        return source, backbone.shapes[source]


@frozen(kw_only=True)
class Average(_OfMap):
    """Average pooling (equation 2)."""

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Pooling, average

        return Pooling(*self.map(backbone), average)


@frozen(kw_only=True)
class Max(_OfMap):
    """Max pooling (equation 1)."""

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Pooling, maximum

        return Pooling(*self.map(backbone), maximum)


@frozen(kw_only=True)
class AverageMax(_OfMap):
    """The sum of average and max pooling."""

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Pooling, average_plus_maximum

        return Pooling(*self.map(backbone), average_plus_maximum)


@frozen(kw_only=True)
class GeneralizedMean(_OfMap):
    """Generalized-mean pooling (equation 3; Radenović et al. 2018)."""

    alpha: float = option(3.0, help="exponent: 1 is the average, infinity the maximum", above=0)
    learn: bool = option(True, help="learn the exponent")
    signed: Literal["refuse", "rectify"] = option(
        "refuse", help="a map that may be negative: refuse it, or count its negative values as 0"
    )

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import GeneralizedMean, Pooling

        source, shape = self.map(backbone)
        if shape.signed and self.signed == "refuse":
            raise ContractError(
                f"aggregator: map '{source}' may be negative, which generalized-mean pooling is not for; write "
                "signed = \"rectify\" to count negative values as 0, or choose 'avg', 'max' or 'attention'"
            )
        return Pooling(source, shape, GeneralizedMean(self.alpha, self.learn))


@frozen(kw_only=True)
class Attention(_OfMap):
    """Attention pooling: a weighted mean, with learned weights for each channel (equation 4)."""

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Attention, Pooling

        source, shape = self.map(backbone)
        if (shape.height, shape.width) == (1, 1):
            raise ContractError(
                f"aggregator: map '{source}' has one position, and 'attention' weighs several; choose 'identity', or "
                "another map as source"
            )
        return Pooling(source, shape, Attention(shape.channels))


@frozen(kw_only=True)
class Identity(_OfMap):
    """No pooling: takes a map of one position, such as a class token, as it is."""

    def build(self, backbone: Backbone) -> Pooling:
        from reidcore.builtin.modules.pooling import Pooling, only_position

        source, shape = self.map(backbone)
        if (shape.height, shape.width) != (1, 1):
            raise ContractError(
                f"aggregator: map '{source}' has {shape.height}x{shape.width} positions, and 'identity' takes one; "
                "choose 'avg', 'max' or 'attention'"
            )
        return Pooling(source, shape, only_position)


@frozen(kw_only=True)
class MGN:
    """Multiple granularity network: copies of the last stages, for the whole and for stripes (Wang et al. 2018)."""

    source: str = option("stage3.0", help="name of the map that the branches start from")
    stripes: tuple[int, ...] = option((2, 3), help="horizontal stripes of each branch but the first", at_least=2)
    dim: int = option(256, help="dimension of each view", at_least=1)
    pooling: Literal["max", "avg", "gem"] = option("max", help="of each view; 'gem' learns an exponent for each")
    activate: bool = option(
        True, help="batch norm and ReLU after each view's reduction, as published; false for a head with a norm"
    )

    def build(self, backbone: Backbone) -> MultipleGranularity:
        from reidcore.builtin.modules.mgn import MultipleGranularity
        from reidcore.builtin.modules.pooling import GeneralizedMean, average, maximum

        last, shape = list(backbone.shapes.items())[-1]
        if shape.signed and self.pooling == "gem":
            raise ContractError(
                f"aggregator: map '{last}' may be negative, which generalized-mean pooling is not for; write "
                'pooling = "max" or "avg"'
            )

        def pool() -> Callable[[Tensor], Tensor]:
            return GeneralizedMean() if self.pooling == "gem" else maximum if self.pooling == "max" else average

        return MultipleGranularity(backbone, self.source, self.stripes, self.dim, pool, self.activate)


@hookimpl
def reidcore_aggregators() -> Iterator[Component]:
    """Offer pooling, and the branches of the multiple granularity network."""
    yield Component(name="avg", config=Average)
    yield Component(name="max", config=Max)
    yield Component(name="avg-max", config=AverageMax)
    yield Component(name="gem", config=GeneralizedMean)
    yield Component(name="attention", config=Attention)
    yield Component(name="identity", config=Identity)
    yield Component(name="mgn", config=MGN)
