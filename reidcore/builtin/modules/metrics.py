"""Metrics that are means over queries: of each query's matches only their ranks matter.

A query without a match says nothing about a model and is left out of the mean.
Q: queries; n: matches of one query; a rank counts from 0 (see `RankingBlock.ranks`); R: resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from attrs import define
from numpy.typing import NDArray

from reidcore.errors import DataError
from reidcore.retrieval import Problem, RankingBlock
from reidcore.retrieval.bootstrap import Sums


class QueryMetric:
    """A metric that gives each query a value, called `per_query`, and whose figures are means over queries."""

    per_query: ClassVar[str]

    def values(self, ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the value of each query, (q,), of the ranks of its matches: (n,) those of one query after the other,
        ascending; sizes: (q,) how many each has, at least one."""
        raise NotImplementedError

    def shares(self, values: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        """Return what each query adds to the mean that each figure is, from the (Q,) values of queries with a match."""
        raise NotImplementedError

    def start(self, problem: Problem) -> QueryTally:
        """Begin a tally for `problem`."""
        return QueryTally(self, problem.query.identities, np.full(len(problem.query), np.nan))

    def figures(self, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the figures, (R,), of sums of shares and of the number of queries: (R, figures + 1)."""
        names = self.shares(np.empty(0))
        return {name: sums[:, column] / sums[:, -1] for column, name in enumerate(names)}


@define(eq=False)
class QueryTally:
    """One value a query: so figures do not depend on how the queries were cut into blocks or shared by processes.

    identities: (Q,); values: (Q,) float64, NaN where not (yet) known.
    """

    metric: QueryMetric
    identities: NDArray[np.int64]
    values: NDArray[np.float64]

    def update(self, block: RankingBlock) -> None:
        """Take in one block of ranked queries."""
        sizes = np.array([len(ranks) for ranks in block.ranks])
        if sizes.any():
            places = block.rows.start + np.flatnonzero(sizes)
            self.values[places] = self.metric.values(np.concatenate(block.ranks), sizes[sizes > 0])

    def merge(self, other: QueryTally) -> None:
        """Take in the values that another process has for other queries."""
        np.copyto(self.values, other.values, where=~np.isnan(other.values))

    def result(self) -> Mapping[str, float]:
        """Return the named figures, fractions of 1. Raises DataError if no query has a match."""
        known = self.values[~np.isnan(self.values)]
        if not len(known):
            raise DataError(f"none of {len(self.values)} queries has a match; there is no figure to report")
        return {name: float(np.mean(shares)) for name, shares in self.metric.shares(known).items()}

    @property
    def per_query(self) -> Mapping[str, NDArray[np.float64]]:
        """`{name: (Q,) values}`, NaN for a query without a match."""
        return {self.metric.per_query: self.values}

    @property
    def sums(self) -> Sums:
        """What the metric's `figures` are computed from, an identity."""
        known = ~np.isnan(self.values)
        shares = [*self.metric.shares(self.values[known]).values(), np.ones(known.sum())]
        return Sums.of(self.identities[known], np.stack(shares, axis=1))


class CumulativeMatching(QueryMetric):
    """Cumulative matching characteristic (CMC): the share of queries with a match within the first k.

    Reported for each k of `ranks`. Any match counts, as in Market-1501 (Zheng et al., Scalable Person
    Re-identification: A Benchmark, ICCV 2015). Per query: `first_rank`, the place of the first match, from 1.
    The same figure goes by the name of recall@k where retrieval sets are evaluated (Song et al., Deep Metric Learning
    via Lifted Structured Feature Embedding, CVPR 2016).
    """

    per_query = "first_rank"

    def __init__(self, ranks: Sequence[int] = (1, 5, 10), name: str = "rank") -> None:
        self.ranks, self.name = tuple(ranks), name

    def values(self, ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the place of the first match of each query."""
        return first_ranks(ranks, sizes)

    def shares(self, values: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        """Return for each k whether the first match is within it."""
        return {f"{self.name}{k}": (values <= k).astype(np.float64) for k in self.ranks}


class MeanAveragePrecision(QueryMetric):
    """Mean average precision, `mAP` (Zheng et al., ICCV 2015; not interpolated). Per query: `AP`."""

    per_query = "AP"

    def values(self, ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the average precision of each query."""
        return average_precisions(ranks, sizes)

    def shares(self, values: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the values themselves."""
        return {"mAP": values}


class MeanInverseNegativePenalty(QueryMetric):
    """Mean inverse negative penalty, `mINP`. Per query: `INP`.

    Ye et al., Deep Learning for Person Re-identification: A Survey and Outlook (AGW), TPAMI 2021.
    """

    per_query = "INP"

    def values(self, ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the inverse negative penalty of each query."""
        return inverse_negative_penalties(ranks, sizes)

    def shares(self, values: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the values themselves."""
        return {"mINP": values}


def first_ranks(ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The place of each query's first match, counted from 1: (q,). ranks, sizes: see `QueryMetric.values`."""
    places: NDArray[np.float64] = ranks[np.cumsum(sizes) - sizes] + 1.0
    return places


def average_precisions(ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean over each query's matches of the precision of the ranking down to each: (q,)."""
    starts = np.cumsum(sizes) - sizes
    found = np.arange(1, len(ranks) + 1) - np.repeat(starts, sizes)
    means: NDArray[np.float64] = np.add.reduceat(found / (ranks + 1), starts) / sizes
    return means


def inverse_negative_penalties(ranks: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The precision of the ranking down to each query's last match: (q,)."""
    return sizes / (ranks[np.cumsum(sizes) - 1] + 1)
