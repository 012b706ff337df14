"""Where a query's matches stand in its ranking.

q G: queries of one block, and gallery; n: matches of one query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import ReidError
from reidcore.retrieval.distance import Distances
from reidcore.retrieval.pairs import Pairs

Item = TypeVar("Item")
T = TypeVar("T")

CHUNK = 2**20
"""Pairs that are worked on at a time."""

SAMPLE = 256
"""Matches, and other pairs, of a block whose exact distances tell how far rounding goes."""

CROWDED = 100, 1 / 64
"""Pairs of a query, and share of the gallery, beyond which its whole row in float64 takes less time than pairs do."""


@frozen(eq=False)
class RankingBlock:
    """The ranked gallery of the queries in `rows`; see `Problem.block`.

    distances: (q, G) float32; match_pairs, junk_pairs: each query's matches and its junk, none in both; rounded: where
    the distances come from, if they are not exact.
    """

    rows: slice
    distances: NDArray[np.float32]
    match_pairs: Pairs
    junk_pairs: Pairs
    rounded: Distances | None = None

    @property
    def matches(self) -> NDArray[np.bool_]:
        """(q, G) whether an image is a match of the query."""
        return self._mask(self.match_pairs)

    @property
    def junk(self) -> NDArray[np.bool_]:
        """(q, G) whether an image is left out of the query's ranking."""
        return self._mask(self.junk_pairs)

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
        work = in_threads(partial(self._ranks, self._rounding()), chunks)
        ranks, crowded = (np.concatenate(parts) for parts in zip(*work, strict=True))
        found = np.split(ranks, self.match_pairs.starts[1:-1])
        again = np.flatnonzero(crowded)
        if self.rounded and len(again):
            for rows, distances in self.rounded.exact_rows(self.rows.start + again):
                some = again[rows]
                pairs = self.match_pairs.take(some), self.junk_pairs.take(some)
                for query, exact in zip(some, RankingBlock(rows, distances, *pairs).ranks, strict=True):
                    found[query] = exact
        return found

    def _rounding(self) -> float:
        """Return how far the distances may be off, from some matches and other images."""
        if not self.rounded:
            return 0.0
        random = np.random.default_rng(0)
        count, total = self.distances.shape
        some = random.permutation(len(self.match_pairs.rows))[:SAMPLE]
        rows = np.concatenate([self.match_pairs.rows[some], random.integers(0, count, SAMPLE)])
        images = np.concatenate([self.match_pairs.images[some], random.integers(0, total, SAMPLE)])
        return self.rounded.rounding(self.distances, self.rows.start, rows, images)

    def _ranks(self, rounding: float, queries: slice) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rank the matches of some queries: (n,) query by query; and of which too many pairs are too close to call.

        Of the gallery only what may be nearer than a query's last match is sorted, for all queries at once.
        """
        distances = self.distances[queries]
        count, total = distances.shape
        rows, matches = self.match_pairs.part(queries)
        positives = distances[rows, matches]
        low = high = positives
        if self.rounded:
            low, high = self.rounded.around(rows + self.rows.start + queries.start, positives, rounding)
        last = np.full(count, -np.inf, dtype=np.float32)
        np.maximum.at(last, rows, high)
        near = distances <= last[:, None]
        near[rows, matches] = near[self.junk_pairs.part(queries)] = False
        places = np.flatnonzero(near)
        row = np.repeat(np.arange(count), np.count_nonzero(near, axis=1))
        bits = total.bit_length()
        rivals = _packed(row, distances.reshape(-1)[places], places - row * total, bits)
        rivals.sort()
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
        starts = self.match_pairs.starts[queries.start : queries.stop] - self.match_pairs.starts[queries.start]
        return nearer[np.lexsort((nearer, rows))] + np.arange(len(rows)) - starts[rows], crowded

    def _mask(self, pairs: Pairs) -> NDArray[np.bool_]:
        mask = np.zeros(self.distances.shape, dtype=bool)
        mask[pairs.rows, pairs.images] = True
        return mask


def _packed(
    rows: NDArray[np.int64], distances: NDArray[Any], images: NDArray[np.int64] | int, bits: int
) -> NDArray[np.uint64]:
    """Return integers in the order of row, distance and image; images have up to `bits` bits.

    numpy sorts them vectorised, ten times faster than it would sort each row's distances with their images.
    """
    found = (np.asarray(distances, dtype=np.float32) + np.float32(0)).view(np.int32)  # -0 becomes 0, which it equals
    # negative floats are integers that fall as they rise
    ordered = np.where(found < 0, ~found, found ^ np.int32(-(2**31))).view(np.uint32).astype(np.uint64)
    keys: NDArray[np.uint64] = (rows.astype(np.uint64) << np.uint64(32)) | ordered
    return (keys << np.uint64(bits)) | np.asarray(images, dtype=np.uint64)


def in_threads(function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
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
