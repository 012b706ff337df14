"""Rank lists: what each query found first, and which of its matches it did not find.

Q G: queries and gallery; k: images that are listed; m: matches that come later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.retrieval.distance import Distances
from reidcore.retrieval.evaluation import chain_of
from reidcore.retrieval.postprocess import Final
from reidcore.retrieval.problem import Problem
from reidcore.retrieval.protocol import CROSS_CAMERA
from reidcore.retrieval.trials import trials
from reidcore.types import UNKNOWN, Features

if TYPE_CHECKING:
    import torch

    from reidcore.catalog import Catalog


@frozen(eq=False)
class RankList:
    """The ranking of one query as it is judged: junk is left out, and a tie counts against the query.

    query: its number; average_precision: NaN without a match; images: (k,) numbers in the gallery, nearest first, with
    their distances (k,) and whether they are right (k,); missed: (m,) numbers of the matches that come after these,
    nearest first, with their distances (m,) and their places from 1 (m,).
    """

    query: int
    average_precision: float
    images: NDArray[np.int64]
    distances: NDArray[np.float32]
    right: NDArray[np.bool_]
    missed: NDArray[np.int64]
    missed_distances: NDArray[np.float32]
    missed_places: NDArray[np.int64]


@frozen(eq=False)
class Rankings:
    """All queries' rankings in short, of which `lists` gives some at length.

    query, gallery: what is ranked; of a protocol that draws at random the first draw, of `multi-query` the joint
    queries. average_precision: (Q,), NaN without a match; first_wrong: (Q,) numbers of the gallery image that is wrong
    and first of all, or -1.
    """

    query: Features
    gallery: Features
    average_precision: NDArray[np.float64]
    first_wrong: NDArray[np.int64]
    _problem: Problem
    _final: Final

    @classmethod
    def of(
        cls,
        query: Features,
        gallery: Features,
        *,
        distance: str = "cosine",
        postprocess: Sequence[Any] = (),
        protocol: str = CROSS_CAMERA,
        seed: int = 0,
        device: torch.device | str | None = None,
        catalog: Catalog | None = None,
        done: Callable[[int], None] = lambda count: None,
    ) -> Rankings:
        """Rank the gallery for every query. Arguments and errors are those of `evaluate`, verification excepted."""
        problem = Problem(query, gallery, protocol, distance, device)
        chain = chain_of(problem, postprocess, catalog)
        judge = next(trials(problem, seed)).judges[0]
        final = Final.of(judge, chain)
        precisions = np.full(len(judge.query), np.nan)
        wrong = np.full(len(judge.query), -1)
        for rows, distances in final.blocks():
            block = judge.block(rows, distances, final.rounded)
            for place, ranks in enumerate(block.ranks):
                if not len(ranks):
                    continue
                precisions[rows.start + place] = np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1))
                if ranks[0] > 0:
                    others = distances[place].copy()
                    for pairs in (block.match_pairs, block.junk_pairs):
                        others[pairs.images[pairs.starts[place] : pairs.starts[place + 1]]] = np.inf
                    wrong[rows.start + place] = np.argmin(others)
            done(rows.stop)
            del distances, block  # before there are others
        return cls(judge.query, judge.gallery, precisions, wrong, judge, final)

    def lists(self, queries: Sequence[int] | NDArray[np.int64], k: int = 10) -> list[RankList]:
        """Return the rankings of some queries, in their order: the first `k` images, and the matches after these."""
        rows = self._rows(np.unique(np.asarray(queries, dtype=np.int64)))
        found = {number: self._list(number, distances, k) for number, distances in rows}
        return [found[int(number)] for number in queries]

    def _rows(self, queries: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield some queries, which ascend, with their exact distances."""
        if not len(queries):
            return
        if self._final.rounded:
            for places, distances in self._final.rounded.exact_rows(queries):
                yield from zip(queries[places].tolist(), distances, strict=True)
            return
        for rows, distances in self._final.blocks():
            for number in queries[np.searchsorted(queries, rows.start) : np.searchsorted(queries, rows.stop)].tolist():
                yield number, distances[number - rows.start].copy()

    def _list(self, query: int, distances: NDArray[np.float32], k: int) -> RankList:
        block = self._problem.block(slice(query, query + 1), distances[None])
        right = block.matches[0]
        kept = np.flatnonzero(~block.junk[0])
        order = kept[np.lexsort((right[kept], distances[kept]))]
        places = np.flatnonzero(right[order])
        later = places[places >= k]
        return RankList(
            query,
            float(np.mean(np.arange(1, len(places) + 1) / (places + 1))) if len(places) else float("nan"),
            order[:k],
            distances[order[:k]],
            right[order[:k]],
            order[later],
            distances[order[later]],
            later + 1,
        )

    def confusions(self) -> list[tuple[int, int, NDArray[np.int64]]]:
        """Return which identity was taken for which: (identity of queries, identity found first, these queries).

        Most queries first, then those that are farthest from being right. Unknown identities are no confusion.
        """
        found: dict[tuple[int, int], list[int]] = {}
        for query in np.flatnonzero(self.first_wrong >= 0).tolist():
            pair = int(self.query.identities[query]), int(self.gallery.identities[self.first_wrong[query]])
            if UNKNOWN not in pair:
                found.setdefault(pair, []).append(query)
        confused = [(*pair, np.array(queries)) for pair, queries in found.items()]
        return sorted(confused, key=lambda item: (-len(item[2]), self.average_precision[item[2]].mean(), item[:2]))


@frozen(eq=False)
class HardPairs:
    """The pairs of a verification that are most likely told wrong: (k,) row numbers and (k,) distances.

    Those of one identity that are farthest apart, and those of two that are nearest.
    """

    genuine: NDArray[np.int64]
    genuine_distances: NDArray[np.float32]
    impostor: NDArray[np.int64]
    impostor_distances: NDArray[np.float32]

    @classmethod
    def of(cls, query: Features, gallery: Features, k: int = 50, *, distance: str = "cosine") -> HardPairs:
        """Compare each query with the gallery image of its row."""
        problem = Problem(query, gallery, distance=distance)
        sides = problem.query.identities, problem.gallery.identities
        known = np.flatnonzero((sides[0] != UNKNOWN) & (sides[1] != UNKNOWN))
        distances = Distances(problem).pairs(known, known)
        same = (sides[0] == sides[1])[known]
        order = np.argsort(distances, kind="stable")
        far, near = order[::-1][same[order[::-1]]][:k], order[~same[order]][:k]
        return cls(known[far], distances[far], known[near], distances[near])
