"""Where a query's matches stand in its ranking.

q G: queries of one block, and gallery; n: matches of one query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import ReidError
from reidcore.retrieval.distance import Distances

T = TypeVar("T")

CROWDED = 1000
"""Wrong images too close to the matches of a query for them to be compared one by one."""


@frozen(eq=False)
class RankingBlock:
    """The ranked gallery of the queries in `rows`; see `Problem.block`.

    distances: (q, G) float32; match_images, junk_images: for each query the numbers of its matches and its junk in the
    gallery, ascending, none in both; rounded: where the distances come from, if they are not exact.
    """

    rows: slice
    distances: NDArray[np.float32]
    match_images: Sequence[NDArray[np.int64]]
    junk_images: Sequence[NDArray[np.int64]]
    rounded: Distances | None = None

    @property
    def matches(self) -> NDArray[np.bool_]:
        """(q, G) whether an image is a match of the query."""
        return self._mask(self.match_images)

    @property
    def junk(self) -> NDArray[np.bool_]:
        """(q, G) whether an image is left out of the query's ranking."""
        return self._mask(self.junk_images)

    @cached_property
    def ranks(self) -> list[NDArray[np.int64]]:
        """For each query the ranks of its matches, ascending, counted from 0 in the ranking without junk.

        A tie counts against the query: a match stands behind every wrong image that is as near. Otherwise a
        model that puts all images on one point could have a perfect score.
        """
        ranks = in_threads(self._ranks, len(self.distances))
        crowded = [query for query, found in enumerate(ranks) if found is None]
        if self.rounded and crowded:
            for rows, distances in self.rounded.exact_rows([self.rows.start + query for query in crowded]):
                some = crowded[rows]
                matches, junk = ([images[query] for query in some] for images in (self.match_images, self.junk_images))
                exact = RankingBlock(slice(0, len(some)), distances, matches, junk).ranks
                for query, found in zip(some, exact, strict=True):
                    ranks[query] = found
        return ranks  # type: ignore[return-value]

    def _ranks(self, query: int) -> NDArray[np.int64] | None:
        """Rank the matches of one query, or return None if too many pairs are too close to call."""
        matches, row = self.match_images[query], self.distances[query]
        if not len(matches):
            return np.empty(0, dtype=np.int64)
        wrong = row.copy()
        wrong[matches] = wrong[self.junk_images[query]] = np.inf
        places = np.arange(len(matches))
        if self.rounded is None:
            positives = np.sort(row[matches])
            return np.searchsorted(np.sort(_up_to(wrong, positives[-1])[1]), positives, side="right") + places
        number = self.rows.start + query
        low, high = self.rounded.around(number, row[matches])
        images, near = _up_to(wrong, high.max())
        rivals = np.sort(near)  # which is vectorised: ten times faster than looking each up among the matches
        nearer = np.searchsorted(rivals, high, side="right")
        unsure = np.flatnonzero(np.searchsorted(rivals, low) < nearer)
        if len(unsure):
            low, high = low[unsure], high[unsure]
            close = np.unique(
                np.concatenate([np.flatnonzero((near >= a) & (near <= b)) for a, b in zip(low, high, strict=True)])
            )
            if len(close) > CROWDED:
                return None
            exact = self.rounded.pairs(number, np.concatenate([matches[unsure], images[close]]))
            ours, theirs = exact[: len(unsure), None], exact[len(unsure) :]
            inside = (near[close] >= low[:, None]) & (near[close] <= high[:, None])
            nearer[unsure] -= (inside & (theirs > ours)).sum(axis=1)
        return np.sort(nearer) + places

    def _mask(self, images: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        mask = np.zeros(self.distances.shape, dtype=bool)
        for row, numbers in zip(mask, images, strict=True):
            row[numbers] = True
        return mask


def _up_to(distances: NDArray[np.float32], last: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the numbers of the images up to the distance `last`, and their distances."""
    near = np.flatnonzero(distances <= last)
    return near, distances[near]


def in_threads(function: Callable[[int], T], count: int, chunk: int = 16) -> list[T]:
    """Return `function(0)`, ..., `function(count - 1)` from as many threads as torch uses; numpy lets them run."""
    import torch

    def some(start: int) -> list[T]:
        return [function(number) for number in range(start, min(start + chunk, count))]

    starts = range(0, count, chunk)
    threads = torch.get_num_threads()
    if threads == 1 or len(starts) < 2:
        return [item for start in starts for item in some(start)]
    with ThreadPoolExecutor(threads) as pool:
        return [item for items in pool.map(some, starts) for item in items]


def check_distances(rows: slice, distances: NDArray[np.float32]) -> None:
    """Raise ReidError if a distance is NaN: embeddings are finite, so a post-processor made it."""
    bad = np.isnan(distances.min(axis=1))  # which is NaN where there is one
    if bad.any():
        first = rows.start + int(np.argmax(bad))
        raise ReidError(
            f"{np.isnan(distances).sum()} distances are NaN, the first of query {first}; check the post-processors"
        )
