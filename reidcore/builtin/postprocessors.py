"""The post-processors of re-identification: query-expansion, k-reciprocal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.kinds import Postprocessor


@frozen(kw_only=True)
class QueryExpansion:
    """Replaces each query's embedding by the mean of it and its nearest gallery images (equation 7)."""

    k: int = option(5, help="gallery images to take, apart from the image itself", at_least=1)
    alpha: float = option(0.0, help="weights them by cosine^alpha; 0: all the same", at_least=0)
    database: bool = option(False, help="also replaces gallery images, by their nearest in the gallery")

    def build(self) -> Postprocessor:
        from reidcore.builtin.modules.query_expansion import Expansion

        return Expansion(self.k, self.alpha, self.database)


@frozen(kw_only=True)
class KReciprocal:
    """Mixes distances with those of neighbourhoods: how many mutual neighbours two images share."""

    k1: int = option(20, help="neighbours of an image", at_least=1)
    k2: int = option(6, help="nearest images whose neighbourhoods are averaged, itself included", at_least=1)
    weight: float = option(0.3, help="share of the original distance, lambda in the paper", at_least=0, at_most=1)

    def build(self) -> Postprocessor:
        from reidcore.builtin.modules.k_reciprocal import ReRanking

        return ReRanking(self.k1, self.k2, self.weight)


@hookimpl
def reidcore_postprocessors() -> Iterator[Component]:
    """Offer the built-in post-processors."""
    yield Component(name="query-expansion", config=QueryExpansion)
    yield Component(name="k-reciprocal", config=KReciprocal)
