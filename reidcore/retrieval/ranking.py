"""Where a query's matches stand in its ranking.

q G: queries of one block, and gallery.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import ReidError


@frozen(eq=False)
class RankingBlock:
    """The ranked gallery of the queries in `rows`.

    distances: (q, G) float32; matches, junk: (q, G) bool, none in both. Raises ReidError for distances that
    are NaN.
    """

    rows: slice
    distances: NDArray[np.float32]
    matches: NDArray[np.bool_]
    junk: NDArray[np.bool_]

    def __attrs_post_init__(self) -> None:
        check_distances(self.rows, self.distances)

    @cached_property
    def ranks(self) -> list[NDArray[np.int64]]:
        """For each query the ranks of its matches, ascending, counted from 0 in the ranking without junk.

        A tie counts against the query: a match stands behind every wrong image that is as near. Otherwise a
        model that puts all images on one point could have a perfect score.
        """
        return [_ranks(*row) for row in zip(self.distances, self.matches, self.junk, strict=True)]


def _ranks(distances: NDArray[np.float32], matches: NDArray[np.bool_], junk: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rank the matches of one query; of the gallery only what is as near as the last match is sorted."""
    positives = np.sort(distances[matches])
    if not len(positives):
        return np.empty(0, dtype=np.int64)
    rivals = np.sort(distances[~(matches | junk) & (distances <= positives[-1])])
    # numpy's sort is vectorised: ten times faster than looking each rival up among the matches, unsorted.
    return np.searchsorted(rivals, positives, side="right") + np.arange(len(positives))


def check_distances(rows: slice, distances: NDArray[np.float32]) -> None:
    """Raise ReidError if a distance is NaN: embeddings are finite, so a post-processor made it."""
    bad = np.isnan(distances)
    if bad.any():
        first = rows.start + int(np.argmax(bad.any(axis=1)))
        raise ReidError(f"{bad.sum()} distances are NaN, the first of query {first}; check the post-processors")
