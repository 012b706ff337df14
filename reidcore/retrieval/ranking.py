"""Where a query's matches stand in its ranking.

q G: queries of one block, and gallery; n: matches of one query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import ReidError
from reidcore.retrieval.distance import Distances

Item = TypeVar("Item")
T = TypeVar("T")

CHUNK = 2**20
"""Pairs that are worked on at a time."""

CROWDED = 100, 1 / 64
"""Pairs of a query, and share of the gallery, beyond which its whole row in float64 takes less time than pairs do."""


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
        count, total = self.distances.shape
        # a row, a distance and an image go into 64 bits, and what is worked on into the cache
        step = min(max(1, CHUNK // total), 2 ** (32 - total.bit_length()))
        chunks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        ranks = [found for chunk in in_threads(self._ranks, chunks) for found in chunk]
        crowded = [query for query, found in enumerate(ranks) if found is None]
        if self.rounded and crowded:
            for rows, distances in self.rounded.exact_rows([self.rows.start + query for query in crowded]):
                some = crowded[rows]
                matches, junk = ([images[query] for query in some] for images in (self.match_images, self.junk_images))
                exact = RankingBlock(slice(0, len(some)), distances, matches, junk).ranks
                for query, found in zip(some, exact, strict=True):
                    ranks[query] = found
        return ranks  # type: ignore[return-value]

    def _ranks(self, queries: slice) -> list[NDArray[np.int64] | None]:
        """Rank the matches of some queries; None where too many pairs are too close to call.

        Of the gallery only what may be nearer than a query's last match is sorted, for all queries at once.
        """
        distances = self.distances[queries]
        count, total = distances.shape
        rows, matches = flat(self.match_images[queries])
        positives = distances[rows, matches]
        low = high = positives
        if self.rounded:
            low, high = self.rounded.around(rows + self.rows.start + queries.start, positives)
        last = np.full(count, -np.inf, dtype=np.float32)
        np.maximum.at(last, rows, high)
        near = distances <= last[:, None]
        near[rows, matches] = near[flat(self.junk_images[queries])] = False
        row, image = np.divmod(np.flatnonzero(near), total)
        bits = total.bit_length()
        rivals = np.sort(_packed(row, distances[row, image], image, bits))
        upto = np.searchsorted(rivals, _packed(rows, high, total, bits), side="right")
        nearer = upto - np.searchsorted(rivals, rows.astype(np.uint64) << np.uint64(32 + bits))
        crowded = np.zeros(count, dtype=bool)
        if self.rounded:
            below = np.searchsorted(rivals, _packed(rows, low, 0, bits))
            crowded = np.bincount(rows, upto - below, count) > max(CROWDED[0], CROWDED[1] * total)
            unsure = np.flatnonzero((below < upto) & ~crowded[rows])
            sizes = (upto - below)[unsure]
            which = np.repeat(np.arange(len(unsure)), sizes)
            close = rivals[np.arange(len(which)) + np.repeat(below[unsure] - (np.cumsum(sizes) - sizes), sizes)]
            number = rows[unsure] + self.rows.start + queries.start
            ours = self.rounded.pairs(number, matches[unsure])
            theirs = self.rounded.pairs(number[which], (close & np.uint64(2**bits - 1)).astype(np.int64))
            nearer[unsure] -= np.bincount(which[theirs > ours[which]], minlength=len(unsure))
        ends = np.cumsum(np.bincount(rows, minlength=count))
        nearer = (
            nearer[np.lexsort((nearer, rows))]
            + np.arange(len(rows))
            - np.repeat(np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0))
        )
        starts = [0, *ends[:-1].tolist()]
        return [
            None if skip else nearer[start:end]
            for start, end, skip in zip(starts, ends.tolist(), crowded.tolist(), strict=True)
        ]

    def _mask(self, images: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        mask = np.zeros(self.distances.shape, dtype=bool)
        for row, numbers in zip(mask, images, strict=True):
            row[numbers] = True
        return mask


def flat(images: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the query, counted from 0, and the image of all pairs of some queries and their images."""
    rows = np.repeat(np.arange(len(images)), [len(numbers) for numbers in images])
    return rows, np.concatenate(images)


def _packed(
    rows: NDArray[np.int64], distances: NDArray[Any], images: NDArray[np.int64] | int, bits: int
) -> NDArray[np.uint64]:
    """Return integers in the order of row, distance and image; images have up to `bits` bits.

    numpy sorts them vectorised, ten times faster than it would sort each row's distances with their images.
    """
    found = np.asarray(distances, dtype=np.float32).view(np.int32)
    # negative floats are integers that fall as they rise
    ordered = np.where(found < 0, ~found, found ^ np.int32(-(2**31))).view(np.uint32).astype(np.uint64)
    keys: NDArray[np.uint64] = (rows.astype(np.uint64) << np.uint64(32)) | ordered
    return (keys << np.uint64(bits)) | np.asarray(images, dtype=np.uint64)


def in_threads(function: Callable[[Item], T], items: Sequence[Item]) -> Iterator[T]:
    """Yield the function of each item, by as many threads as torch uses; large operations of numpy let them run."""
    import torch

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(function, items)


def check_distances(rows: slice, distances: NDArray[np.float32]) -> None:
    """Raise ReidError if a distance is NaN: embeddings are finite, so a post-processor made it."""
    bad = np.isnan(distances.min(axis=1))  # which is NaN where there is one
    if bad.any():
        first = rows.start + int(np.argmax(bad))
        raise ReidError(
            f"{np.isnan(distances).sum()} distances are NaN, the first of query {first}; check the post-processors"
        )
