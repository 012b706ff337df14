"""The metrics of re-identification and retrieval: cmc, map, minp, recall, roc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.kinds import Metric


@frozen(kw_only=True)
class CMC:
    """Share of the queries that have a match among their first k images: rank1, rank5, ..."""

    ranks: tuple[int, ...] = option((1, 5, 10), help="the k to report, each as rank<k>", at_least=1)

    def build(self) -> Metric:
        from reidcore.builtin.modules.metrics import CumulativeMatching

        return CumulativeMatching(self.ranks)


@frozen(kw_only=True)
class MAP:
    """Mean average precision, mAP: how early the matches of a query come, all in all."""

    def build(self) -> Metric:
        from reidcore.builtin.modules.metrics import MeanAveragePrecision

        return MeanAveragePrecision()


@frozen(kw_only=True)
class MINP:
    """Mean inverse negative penalty, mINP: how early a query's hardest match comes."""

    def build(self) -> Metric:
        from reidcore.builtin.modules.metrics import MeanInverseNegativePenalty

        return MeanInverseNegativePenalty()


@frozen(kw_only=True)
class Recall:
    """Recall@k as retrieval sets report it: share of the queries with a match among their first k images."""

    k: tuple[int, ...] = option((1, 2, 4, 8), help="the k to report, each as recall@<k>", at_least=1)

    def build(self) -> Metric:
        from reidcore.builtin.modules.metrics import CumulativeMatching

        return CumulativeMatching(self.k, "recall@")


@frozen(kw_only=True)
class ROC:
    """Share of the genuine pairs accepted (TAR) at a share of impostor pairs accepted (FAR), and the area (AUC)."""

    far: tuple[float, ...] = option((1e-4, 1e-3, 1e-2), help="the FAR to report TAR at", above=0, below=1)

    def build(self) -> Metric:
        from reidcore.builtin.modules.roc import ReceiverOperatingCharacteristic

        return ReceiverOperatingCharacteristic(self.far)


@hookimpl
def reidcore_metrics() -> Iterator[Component]:
    """Offer the built-in metrics."""
    yield Component(name="cmc", config=CMC)
    yield Component(name="map", config=MAP)
    yield Component(name="minp", config=MINP)
    yield Component(name="recall", config=Recall)
    yield Component(name="roc", config=ROC)
