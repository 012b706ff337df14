"""Metrics that are means over queries: of each query's matches only their ranks matter.

A query without a match says nothing about a model and is left out of the mean.
Q: queries; n: matches of one query; a rank counts from 0 (see `RankingBlock.ranks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from attrs import define
from numpy.typing import NDArray

from reidcore.errors import DataError
from reidcore.retrieval import Problem, RankingBlock


@define(eq=False)
class QueryTally:
    """One value a query, and the figures made of the values of those that have a match.

    values: (Q,) float64, NaN where not (yet) known; value: ranks (n,) -> the query's value; figures: values
    of the queries with a match -> named figures. As there is one value a query, the figures do not depend on
    how the queries were cut into blocks or shared by processes.
    """

    name: str
    values: NDArray[np.float64]
    value: Callable[[NDArray[np.int64]], float]
    figures: Callable[[NDArray[np.float64]], Mapping[str, float]]

    def update(self, block: RankingBlock) -> None:
        """Take in one block of ranked queries."""
        self.values[block.rows] = [self.value(ranks) if len(ranks) else np.nan for ranks in block.ranks]

    def merge(self, other: QueryTally) -> None:
        """Take in the values that another process has for other queries."""
        np.copyto(self.values, other.values, where=~np.isnan(other.values))

    def result(self) -> Mapping[str, float]:
        """Return the named figures, fractions of 1. Raises DataError if no query has a match."""
        known = self.values[~np.isnan(self.values)]
        if not len(known):
            raise DataError(f"none of {len(self.values)} queries has a match; there is no figure to report")
        return self.figures(known)

    @property
    def per_query(self) -> Mapping[str, NDArray[np.float64]]:
        """`{name: (Q,) values}`, NaN for a query without a match."""
        return {self.name: self.values}


class CumulativeMatching:
    """Cumulative matching characteristic (CMC): the share of queries with a match within the first k.

    Reported for each k of `ranks`. Any match counts, as in Market-1501 (Zheng et al., Scalable Person
    Re-identification: A Benchmark, ICCV 2015). Per query: `first_rank`, the place of the first match, from 1.
    """

    def __init__(self, ranks: Sequence[int] = (1, 5, 10)) -> None:
        self.ranks = tuple(ranks)

    def start(self, problem: Problem) -> QueryTally:
        """Begin a tally for `problem`."""
        return QueryTally("first_rank", _unknown(problem), first_rank, self._figures)

    def _figures(self, first_ranks: NDArray[np.float64]) -> Mapping[str, float]:
        return {f"rank{k}": float(np.mean(first_ranks <= k)) for k in self.ranks}


class MeanAveragePrecision:
    """Mean average precision, `mAP` (Zheng et al., ICCV 2015; not interpolated). Per query: `AP`."""

    def start(self, problem: Problem) -> QueryTally:
        """Begin a tally for `problem`."""
        return QueryTally("AP", _unknown(problem), average_precision, self._figures)

    def _figures(self, precisions: NDArray[np.float64]) -> Mapping[str, float]:
        return {"mAP": float(np.mean(precisions))}


class MeanInverseNegativePenalty:
    """Mean inverse negative penalty, `mINP`. Per query: `INP`.

    Ye et al., Deep Learning for Person Re-identification: A Survey and Outlook (AGW), TPAMI 2021.
    """

    def start(self, problem: Problem) -> QueryTally:
        """Begin a tally for `problem`."""
        return QueryTally("INP", _unknown(problem), inverse_negative_penalty, self._figures)

    def _figures(self, penalties: NDArray[np.float64]) -> Mapping[str, float]:
        return {"mINP": float(np.mean(penalties))}


def first_rank(ranks: NDArray[np.int64]) -> float:
    """The place of the first match, counted from 1. ranks: (n,) ascending."""
    return float(ranks[0] + 1)


def average_precision(ranks: NDArray[np.int64]) -> float:
    """The mean over the matches of the precision of the ranking down to each. ranks: (n,) ascending."""
    return float(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))


def inverse_negative_penalty(ranks: NDArray[np.int64]) -> float:
    """The precision of the ranking down to the last match. ranks: (n,) ascending."""
    return float(len(ranks) / (ranks[-1] + 1))


def _unknown(problem: Problem) -> NDArray[np.float64]:
    return np.full(len(problem.query), np.nan)
