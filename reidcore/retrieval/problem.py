"""A retrieval problem: find the images of each query's identity in the gallery.

Q G: queries and gallery; q: the queries of one block; D: dimension of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from reidcore.errors import ReidError
from reidcore.retrieval.pairs import Pairs
from reidcore.retrieval.protocol import (
    BY_CAMERA,
    CROSS_CAMERA,
    PROTOCOLS,
    Coverage,
    check_name,
    coverage,
    image_numbers,
)
from reidcore.types import UNKNOWN, Features

if TYPE_CHECKING:
    import torch

    from reidcore.retrieval.distance import Distances
    from reidcore.retrieval.ranking import RankingBlock

DISTANCES = ("cosine", "euclidean")
_SHOWN = 3
_ROWS = 4096  # of embeddings that are looked at in one go


@frozen(eq=False)
class Problem:
    """Queries, the gallery in which to find them, how to compare, and what counts as found.

    distance: "cosine" (1 - cos) or "euclidean"; device: where distances are computed, by default the CPU;
    protocol: see `reidcore.retrieval.protocol`; draw: for a protocol that draws the gallery at random, the seeds of it.
    With `draw` each query has a gallery of its own: one image an identity, what is left is junk.

    Two unknown cameras are the same camera, and an unknown identity matches nothing.

    Raises ReidError for features that are empty, not finite, or whose shapes disagree, for embeddings of zeros if the
    distance is cosine, and for an unknown protocol or distance.
    """

    query: Features
    gallery: Features
    protocol: str = CROSS_CAMERA
    distance: str = "cosine"
    device: torch.device | str | None = None
    draw: tuple[int, ...] | None = None
    longest: float = field(init=False, default=0.0)
    """Length of the longest embedding, or infinity if its square is too large for float32."""
    shortest: float = field(init=False, default=0.0)
    """Length of the shortest, or 0 if its square is too small."""

    def __attrs_post_init__(self) -> None:
        check_name("protocol", self.protocol, PROTOCOLS)
        check_name("distance", self.distance, DISTANCES)
        for side in ("query", "gallery"):
            object.__setattr__(self, side, as_arrays(getattr(self, side), side))
        dimensions = [side.embeddings.shape[1] for side in (self.query, self.gallery)]
        if dimensions[0] != dimensions[1]:
            raise ReidError(
                f"query embeddings have {dimensions[0]} dimensions and gallery embeddings {dimensions[1]}; "
                "both must come from the same model"
            )
        sides = ((self.query, "query"), (self.gallery, "gallery"))
        zeros = self.distance != "cosine"
        ends = [check_values(part.embeddings, name, part.paths, zeros=zeros) for part, name in sides]
        object.__setattr__(self, "shortest", min(shortest for shortest, _ in ends))
        object.__setattr__(self, "longest", max(longest for _, longest in ends))

    def block(self, rows: slice, distances: NDArray[np.float32], rounded: Distances | None = None) -> RankingBlock:
        """Return the ranking of the queries in `rows` by their (q, G) distances, with its matches and junk."""
        from reidcore.retrieval.ranking import RankingBlock

        order, ordered = self._by_identity
        same = Pairs.of_equal(self.query.identities[rows], order, ordered, but=UNKNOWN)
        if self.protocol in BY_CAMERA:
            near = self.query.cameras[rows][same.rows] == self.gallery.cameras[same.images]
            matches, junk = same.where(~near), same.where(near)
        elif self._images is None:
            matches, junk = same, same.where(np.zeros(len(same.rows), dtype=bool))
        else:
            numbers, gallery_numbers, order = self._images
            matches = same.where(numbers[rows][same.rows] != gallery_numbers[same.images])
            junk = Pairs.of_equal(numbers[rows], order, gallery_numbers[order])
        if self.draw is not None:
            matches, junk = self._drawn(rows, matches, junk)
        return RankingBlock(rows, distances, matches, junk, rounded)

    def _drawn(self, rows: slice, matches: Pairs, junk: Pairs) -> tuple[Pairs, Pairs]:
        """Leave one image of each identity in each query's gallery, and all those of unknown identity."""
        order, ordered = self._by_identity
        starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        sizes = np.diff(starts, append=len(order))
        out = np.ones((junk.count, len(order)), dtype=bool)
        assert self.draw is not None
        for row in range(junk.count):
            left_out = junk.images[junk.starts[row] : junk.starts[row + 1]]
            lots = np.random.default_rng([*self.draw, rows.start + row]).random(len(order))
            lots[left_out] = 1  # beyond all others
            lots = lots[order]
            out[row, order] = (lots > np.repeat(np.minimum.reduceat(lots, starts), sizes)) & (ordered != UNKNOWN)
            out[row, left_out] = True
        return matches.where(~out[matches.rows, matches.images]), Pairs(junk.count, *np.nonzero(out))

    @cached_property
    def _by_identity(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The gallery's numbers, and their identities, by identity."""
        order = np.argsort(self.gallery.identities, kind="stable")
        return order, self.gallery.identities[order]

    @cached_property
    def _images(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
        """The numbers of the queries' and the gallery's images, equal paths alike, and the gallery's by these."""
        numbers = image_numbers(*self.image_names)
        return None if numbers is None else (*numbers, np.argsort(numbers[1], kind="stable"))

    @property
    def image_names(self) -> tuple[Sequence[Any] | None, Sequence[Any] | None]:
        """What tells the images; without paths the same array on both sides does, row by row."""
        if self.query.embeddings is self.gallery.embeddings:
            return range(len(self.query)), range(len(self.gallery))
        return self.query.paths, self.gallery.paths

    def coverage(self) -> Coverage:
        """Count the queries that have a match, and why the others have none."""
        query, gallery = self.query, self.gallery
        return coverage(
            query.identities,
            query.cameras,
            gallery.identities,
            gallery.cameras,
            self.protocol,
            query_paths=self.image_names[0],
            gallery_paths=self.image_names[1],
            query_groups=query.groups,
        )


def as_arrays(features: Features, side: str) -> Features:
    """Return the features as arrays; raise ReidError unless their shapes and types agree."""
    embeddings = as_matrix(features.embeddings, side)
    count = len(embeddings)
    if not count:
        raise ReidError(f"the {side} set is empty; at least one image is needed")
    for name in ("identities", "cameras"):
        values = np.asarray(getattr(features, name))
        if values.shape != (count,):
            raise ReidError(f"{side} {name} have shape {values.shape}; expected ({count},), one an embedding")
        if values.dtype.kind not in "iu":
            raise ReidError(f"{side} {name} are of type {values.dtype}; expected integers")
    if features.paths is not None and len(features.paths) != count:
        raise ReidError(f"{side} has {len(features.paths)} paths for {count} embeddings; expected one each")
    if features.groups is not None and len(features.groups) != count:
        raise ReidError(f"{side} has {len(features.groups)} groups for {count} embeddings; expected one each")
    for name, extra in features.extras.items():
        if len(extra) != count:
            raise ReidError(f"{side} extra '{name}' has {len(extra)} rows for {count} embeddings; expected one each")
    identities, cameras = (np.asarray(labels, dtype=np.int64) for labels in (features.identities, features.cameras))
    groups = None if features.groups is None else np.asarray(features.groups)
    extras = {name: np.asarray(extra) for name, extra in features.extras.items()}
    return Features(embeddings, identities, cameras, features.paths, groups, extras)


def as_matrix(embeddings: Any, side: str) -> NDArray[Any]:
    """Return (N, D) embeddings as an array of whatever real type; raise ReidError if they are something else."""
    try:
        found = np.asarray(embeddings)
        if found.dtype.kind not in "fiu":
            raise TypeError(f"their type is {found.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ReidError(f"{side} embeddings are not an array of numbers in main memory: {error}") from error
    if found.ndim != 2 or not found.shape[1]:
        raise ReidError(f"{side} embeddings have shape {found.shape}; expected (N, D)")
    return found


def check_values(
    embeddings: NDArray[Any], side: str, paths: Sequence[str] | None = None, start: int = 0, *, zeros: bool = False
) -> tuple[float, float]:
    """Return the least and the largest length of (N, D) embeddings; 0 and infinity where float32 has not their square.

    Raises ReidError that names the first which are not finite or, unless `zeros`, all zeros.
    paths, start: names of all rows, of which these begin at `start`.
    """
    shortest, longest = np.inf, 0.0
    for first in range(0, len(embeddings), _ROWS):
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            some = np.asarray(embeddings[first : first + _ROWS], dtype=np.float32)
            squares = np.einsum("nd,nd->n", some, some)
        shortest, longest = min(shortest, float(np.sqrt(squares.min()))), max(longest, float(np.sqrt(squares.max())))
        bad = []
        for row in np.flatnonzero(~(np.isfinite(squares) & (squares > 0))).tolist():  # of these some are sound
            name = f"row {start + first + row}" + (f" ({paths[start + first + row]})" if paths is not None else "")
            if not np.isfinite(some[row]).all():
                bad.append(f"{name} is not finite")
            elif not zeros and not some[row].any():
                bad.append(f"{name} is all zeros")
        if bad:
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise ReidError(
                f"{side}: embeddings that compare with nothing: {', '.join(bad[:_SHOWN])}{more}; "
                "leave these images out, or look at what the model makes of them"
            )
    return shortest, longest
