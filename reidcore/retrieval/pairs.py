"""Pairs of queries and gallery images, the few that labels tell apart.

q: queries; n: pairs.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from attrs import frozen
from numpy.typing import NDArray


@frozen(eq=False)
class Pairs:
    """Some gallery images of each of `count` queries.

    rows: (n,) the queries, ascending, from 0; images: (n,) numbers in the gallery, ascending for each query.
    """

    count: int
    rows: NDArray[np.int64]
    images: NDArray[np.int64]

    @classmethod
    def of_equal(
        cls, keys: NDArray[np.int64], order: NDArray[np.int64], ordered: NDArray[np.int64], but: int | None = None
    ) -> Pairs:
        """Return, for queries with these (q,) keys, the images with the same key.

        order, ordered: (G,) a stable order of the gallery by key, and its keys in it; but: a key that is equal to none.
        """
        first, last = np.searchsorted(ordered, keys, "left"), np.searchsorted(ordered, keys, "right")
        sizes = np.where(keys == but, 0, last - first) if but is not None else last - first
        rows = np.repeat(np.arange(len(keys)), sizes)
        places = np.arange(len(rows)) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
        return cls(len(keys), rows, order[places])

    def where(self, kept: NDArray[np.bool_]) -> Pairs:
        """Return the pairs for which `kept`, (n,), is true."""
        return Pairs(self.count, self.rows[kept], self.images[kept])

    def part(self, queries: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows, from 0, and images of the pairs of some queries."""
        pairs = slice(self.starts[queries.start], self.starts[min(queries.stop, self.count)])
        return self.rows[pairs] - queries.start, self.images[pairs]

    def take(self, queries: NDArray[np.int64]) -> Pairs:
        """Return the pairs of the queries with these numbers, in this order."""
        images = [self.images[self.starts[query] : self.starts[query + 1]] for query in queries.tolist()]
        rows = np.repeat(np.arange(len(queries)), [len(some) for some in images])
        return Pairs(len(queries), rows, np.concatenate(images))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(q,) how many images each query has."""
        return np.bincount(self.rows, minlength=self.count)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(q + 1,) where the pairs of each query begin, and where the last end."""
        return np.concatenate([[0], np.cumsum(self.sizes)])
