"""A retrieval problem: find the images of each query's identity in the gallery.

Q G: queries and gallery; q: the queries of one block; D: dimension of the embedding.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import ReidError
from reidcore.retrieval.protocol import (
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

DISTANCES = ("cosine", "euclidean")


@frozen(eq=False)
class Problem:
    """Queries, the gallery in which to find them, how to compare, and what counts as found.

    distance: "cosine" (1 - cos) or "euclidean"; device: where distances are computed, by default the CPU.

    `cross-camera`: a match has the query's identity and another camera; the same identity under the same
    camera is junk, and two unknown cameras are the same camera. `all-cameras`: cameras play no role, and the
    query's own image (equal paths, when both sides have paths) is junk. An unknown identity matches nothing.

    Raises ReidError for features that are empty, not finite, or whose shapes disagree, and for an unknown
    protocol or distance.
    """

    query: Features
    gallery: Features
    protocol: str = CROSS_CAMERA
    distance: str = "cosine"
    device: torch.device | str | None = None

    def __attrs_post_init__(self) -> None:
        check_name("protocol", self.protocol, PROTOCOLS)
        check_name("distance", self.distance, DISTANCES)
        dimensions = [check_features(self.query, "query"), check_features(self.gallery, "gallery")]
        if dimensions[0] != dimensions[1]:
            raise ReidError(
                f"query embeddings have {dimensions[0]} dimensions and gallery embeddings {dimensions[1]}; "
                "both must come from the same model"
            )

    def masks(self, rows: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the matches and the junk of the queries in `rows`, both (q, G); none is in both."""
        wanted = np.asarray(self.query.identities)[rows, None]
        same = (wanted == np.asarray(self.gallery.identities)) & (wanted != UNKNOWN)
        if self.protocol == CROSS_CAMERA:
            near = np.asarray(self.query.cameras)[rows, None] == np.asarray(self.gallery.cameras)
            return same & ~near, same & near
        if self._images is None:
            return same, np.zeros_like(same)
        itself = self._images[0][rows, None] == self._images[1]
        return same & ~itself, itself

    def coverage(self) -> Coverage:
        """Count the queries that have a match, and why the others have none."""
        query, gallery = self.query, self.gallery
        return coverage(
            query.identities,
            query.cameras,
            gallery.identities,
            gallery.cameras,
            self.protocol,
            query_paths=query.paths,
            gallery_paths=gallery.paths,
        )

    @cached_property
    def _images(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        return image_numbers(self.query.paths, self.gallery.paths)


def check_features(features: Features, side: str) -> int:
    """Raise ReidError unless `features` are sound; return the dimension of their embeddings."""
    embeddings = as_float32(features.embeddings, side)
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise ReidError(f"{side} embeddings have shape {embeddings.shape}; expected (N, D)")
    count = len(embeddings)
    if not count:
        raise ReidError(f"the {side} set is empty; at least one image is needed")
    for name in ("identities", "cameras"):
        labels = np.asarray(getattr(features, name))
        if labels.shape != (count,):
            raise ReidError(f"{side} {name} have shape {labels.shape}; expected ({count},), one an embedding")
        if labels.dtype.kind not in "iu":
            raise ReidError(f"{side} {name} are of type {labels.dtype}; expected integers")
    if features.paths is not None and len(features.paths) != count:
        raise ReidError(f"{side} has {len(features.paths)} paths for {count} embeddings; expected one each")
    for name, extra in features.extras.items():
        if len(extra) != count:
            raise ReidError(f"{side} extra '{name}' has {len(extra)} rows for {count} embeddings; expected one each")
    # The extremes of a row show a NaN or an infinity without a mask of N x D.
    finite = np.isfinite(embeddings.min(axis=1)) & np.isfinite(embeddings.max(axis=1))
    if not finite.all():
        first = int(np.argmin(finite))
        name = features.paths[first] if features.paths is not None else f"number {first}"
        raise ReidError(f"{(~finite).sum()} of {count} {side} embeddings are not finite, the first is {name}")
    return int(embeddings.shape[1])


def as_float32(embeddings: Any, side: str) -> NDArray[np.float32]:
    """Return a float32 array, not copied if it is one; raise ReidError for anything but numbers."""
    try:
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return np.asarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ReidError(f"{side} embeddings are not an array of numbers in main memory: {error}") from error
