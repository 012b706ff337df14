"""The receiver operating characteristic of all pairs of queries and gallery images.

q Q G: queries of one block, queries, and gallery; I: query identities; R: resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import define, field
from numpy.typing import NDArray

from reidcore.errors import DataError
from reidcore.retrieval import Problem, RankingBlock
from reidcore.retrieval.bootstrap import Sums
from reidcore.retrieval.distance import SMALL
from reidcore.retrieval.ranking import in_threads
from reidcore.retrieval.roc import COARSE_BINS, FAR, FINE_BINS, Curve, Scale, resampled_figures

CHUNK = 2**19
"""Pairs that are counted in one go: more than there are bins for them, and not much more than the cache holds."""

RUN = 2**20
"""Numbers that are counted in one array: eight doublings of the distance."""


class ReceiverOperatingCharacteristic:
    """TAR at several FAR, and AUC, over the pairs of all queries that have a match; junk is no pair.

    Of small problems all distances are kept, and the curve is exact. Of others they are counted in bins so narrow (a
    hundred-thousandth of the distance) that the curve is within 1e-4 of the exact one unless a larger share of the
    genuine pairs has the same distance to five digits, or distances are less than a hundred-millionth of the largest
    that the embeddings could have.
    """

    def __init__(self, far: Sequence[float] = FAR) -> None:
        self.far = tuple(far)

    def start(self, problem: Problem) -> ScoredPairs:
        """Begin to collect the pairs of `problem`."""
        return ScoredPairs(
            self.far,
            problem.query.identities,
            Scale(2.0 if problem.distance == "cosine" else 2 * problem.longest),
            exact=len(problem.query) * len(problem.gallery) <= SMALL,
        )

    def figures(self, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the figures, (R,), of coarse counts, (R, 2 x `COARSE_BINS`)."""
        return resampled_figures(sums, self.far)


@define(eq=False)
class ScoredPairs:
    """The distances of genuine and of impostor pairs.

    genuine, impostor: of small problems, the distances; counts: (2, `FINE_BINS`) of the others, genuine pairs first;
    coarse: (I, 2 x `COARSE_BINS`) of the query identities `known`, genuine pairs first.
    """

    far: tuple[float, ...]
    identities: NDArray[np.int64]
    scale: Scale
    exact: bool
    genuine: list[NDArray[np.float32]] = field(factory=list)
    impostor: list[NDArray[np.float32]] = field(factory=list)
    known: NDArray[np.int64] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)
    coarse: NDArray[np.int32] = field(init=False)
    per_query: ClassVar[Mapping[str, NDArray[np.float64]]] = {}

    def __attrs_post_init__(self) -> None:
        self.known = np.unique(self.identities)
        self.counts = np.zeros((2, 0 if self.exact else FINE_BINS), dtype=np.int64)
        self.coarse = np.zeros((len(self.known), 2 * COARSE_BINS), dtype=np.int32)

    def update(self, block: RankingBlock) -> None:
        """Take in the pairs of one block of queries."""
        count, total = block.distances.shape
        size = max(1, CHUNK // total)
        chunks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        adding = Lock()  # in the threads, or results would wait in memory

        def work(queries: slice) -> None:
            counts, coarse = self._count(block, queries)
            places = np.searchsorted(self.known, self.identities[block.rows][queries])
            with adding:
                for place, row in zip(places, coarse, strict=True):  # many times faster than numpy.add.at
                    self.coarse[place] += row
                if counts is not None:
                    lowest, many, few, genuine, left_out = counts
                    self.counts[1, lowest : lowest + len(many)] += many
                    np.add.at(self.counts[1], few, 1)
                    np.add.at(self.counts[0], genuine, 1)
                    np.subtract.at(self.counts[1], np.concatenate([genuine, left_out]), 1)

        for _ in in_threads(work, chunks):
            pass

    def _count(self, block: RankingBlock, queries: slice) -> tuple[tuple[Any, ...] | None, NDArray[np.int32]]:
        """Count the pairs of some queries: finely, from the lowest number on, and coarsely."""
        covered = block.match_pairs.sizes[queries] > 0
        distances = block.distances[queries]
        genuine, junk = block.match_pairs.part(queries), block.junk_pairs.part(queries)
        fine = self.scale.fine(distances)
        cells = Scale.coarse(fine)
        cells += (np.arange(len(cells), dtype=np.int32) * COARSE_BINS)[:, None]
        every, ours, left_out = (
            _bincount(some, len(cells) * COARSE_BINS).reshape(len(cells), COARSE_BINS)
            for some in (cells, cells[genuine], cells[junk])
        )
        coarse = np.concatenate([ours, every - ours - left_out], axis=1).astype(np.int32)
        coarse[~covered] = 0
        if self.exact:
            impostor = np.ones(distances.shape, dtype=bool)
            impostor[genuine] = impostor[junk] = impostor[~covered] = False
            self.genuine.append(distances[genuine])
            self.impostor.append(distances[impostor])
            return None, coarse
        junk_numbers = fine[junk][covered[junk[0]]]
        return (*_counted(fine if covered.all() else fine[covered]), fine[genuine], junk_numbers), coarse

    def merge(self, other: ScoredPairs) -> None:
        """Take in the pairs that another process has of other queries."""
        self.genuine += other.genuine
        self.impostor += other.impostor
        self.counts += other.counts
        self.coarse += other.coarse

    def result(self) -> Mapping[str, float]:
        """Return TAR at each FAR, and AUC. Raises DataError where there is no genuine or no impostor pair."""
        return self._curve.figures(self.far)

    @property
    def curves(self) -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
        """The curve and the histograms (see `Curve.plots`)."""
        return {"roc": self._curve.plots()}

    @property
    def sums(self) -> Sums:
        """What the metric's `figures` are computed from, an identity."""
        pairs = self.coarse.sum(axis=1) > 0
        return Sums(self.known[pairs], self.coarse[pairs].astype(np.float64))

    @property
    def _curve(self) -> Curve:
        if self.exact:
            none = [np.empty(0, np.float32)]
            curve = Curve.of(np.concatenate(self.genuine or none), np.concatenate(self.impostor or none))
        else:
            numbers = np.flatnonzero(self.counts.any(axis=0))
            curve = Curve(self.scale.edges(numbers), *self.counts[:, numbers])
        for what, pairs in (("genuine", curve.genuine), ("impostor", curve.impostor)):
            if not pairs.sum():
                raise DataError(f"roc: there is no {what} pair of a query and a gallery image, so it has no figure")
        return curve


def _counted(fine: NDArray[np.int32]) -> tuple[int, NDArray[np.int64], NDArray[np.int32]]:
    """Count numbers: the first of a run of counts, these, and what lies too far below to be in the run."""
    if not fine.size:
        return 0, np.zeros(0, np.int64), np.zeros(0, np.int32)
    low, high = int(fine.min()), int(fine.max())
    if high - low <= RUN:
        return low, _bincount(fine - low), np.zeros(0, np.int32)
    first = high - RUN
    below = fine < first
    return first, _bincount(fine[~below] - first), fine[below]


def _bincount(numbers: NDArray[np.int32], least: int = 0) -> NDArray[np.int64]:
    """numpy.bincount, without the copy that numpy makes of 32-bit numbers."""
    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(numbers.ravel()), minlength=least).numpy()
    return counts
