"""Protocols: which gallery images are a query's matches, which are junk, which queries have a match.

A match is an image of the query's identity. In every protocol some of them are too easy to count, those that
share the query's *origin*: its camera (`cross-camera`), or the very image (`all-cameras`). They are junk,
which is taken out of the ranking as if it were not in the gallery (Zheng et al., Scalable Person
Re-identification: A Benchmark, ICCV 2015).

Q G: queries and gallery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import ArrayLike, NDArray

from reidcore.errors import ReidError
from reidcore.types import UNKNOWN

CROSS_CAMERA = "cross-camera"
ALL_CAMERAS = "all-cameras"
PROTOCOLS = (CROSS_CAMERA, ALL_CAMERAS)


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise a ReidError that suggests the nearest name unless `name` is one of `known`."""
    known = tuple(known)
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ReidError(f"unknown {what} '{name}'; expected {' or '.join(known)}{hint}")


def image_numbers(
    query_paths: Sequence[Any] | None, gallery_paths: Sequence[Any] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Number the images, equal paths alike: (Q,) and (G,), or None if a side has no paths."""
    if query_paths is None or gallery_paths is None:
        return None
    numbers: dict[str, int] = {}
    query, gallery = (
        np.array([numbers.setdefault(str(path), len(numbers)) for path in paths], dtype=np.int64)
        for paths in (query_paths, gallery_paths)
    )
    return query, gallery


@frozen
class Coverage:
    """How many queries have a match, and why the others have none.

    absent: the identity is not in the gallery, or unknown; one_camera: it is, but only under the query's own
    camera; itself: it is, but only as the query's own image; camera: the camera of all images, if they share
    one.
    """

    queries: int
    covered: int
    absent: int = 0
    one_camera: int = 0
    itself: int = 0
    camera: int | None = None

    def describe(self) -> str:
        """Return a sentence about the queries without a match, or an empty one if there are none."""
        missed = self.queries - self.covered
        if not missed:
            return ""
        reasons = []
        for count, where in (
            (self.absent, "nowhere in the gallery"),
            (self.one_camera, "only under {their} own camera, which the cross-camera protocol leaves out"),
            (self.itself, "only in {their} own image"),
        ):
            see, their = ("sees", "its") if count == 1 else ("see", "their")
            if count:
                reasons.append(f"{count} {see} {their} identity {where.format(their=their)}")
        sentence = f"{missed} of {self.queries} queries {'has' if missed == 1 else 'have'} no match: "
        return sentence + ", ".join(reasons) + self._advice()

    def _advice(self) -> str:
        if not self.one_camera or self.camera is None:
            return ""
        found = "no image has a known camera" if self.camera == UNKNOWN else f"all images carry camera {self.camera}"
        return (
            f'; {found}; write cameras = "ignore" in this [[test]] if the set has no cameras, '
            "or put the camera in the file names"
        )


def coverage(
    query_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_identities: ArrayLike,
    gallery_cameras: ArrayLike,
    protocol: str = CROSS_CAMERA,
    *,
    query_paths: Sequence[Any] | None = None,
    gallery_paths: Sequence[Any] | None = None,
) -> Coverage:
    """Count the queries that have a match, from the labels alone: before a single image is read.

    Identities and cameras are (Q,) and (G,) integers. Paths matter to `all-cameras` only.
    Raises ReidError for an unknown protocol.
    """
    check_name("protocol", protocol, PROTOCOLS)
    wanted, identities, cameras, gallery_cameras = (
        np.asarray(labels, dtype=np.int64)
        for labels in (query_identities, gallery_identities, query_cameras, gallery_cameras)
    )
    if protocol == CROSS_CAMERA:
        origins: tuple[NDArray[np.int64], NDArray[np.int64]] | None = (cameras, gallery_cameras)
    else:
        origins = image_numbers(query_paths, gallery_paths)
    present = np.isin(wanted, identities) & (wanted != UNKNOWN)
    alone = np.zeros_like(present)
    if origins and present.any():
        alone[present] = _same_origin(wanted[present], origins[0][present], identities, origins[1])
    seen = np.union1d(cameras, gallery_cameras)
    return Coverage(
        queries=len(wanted),
        covered=int((present & ~alone).sum()),
        absent=int((~present).sum()),
        one_camera=int(alone.sum()) if protocol == CROSS_CAMERA else 0,
        itself=int(alone.sum()) if protocol == ALL_CAMERAS else 0,
        camera=int(seen[0]) if len(seen) == 1 else None,
    )


def _same_origin(
    wanted: NDArray[np.int64],
    origins: NDArray[np.int64],
    identities: NDArray[np.int64],
    gallery_origins: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return (Q,) whether all images of the query's identity, which is in the gallery, share its origin."""
    pairs = np.unique(np.stack([identities, gallery_origins], axis=1), axis=0)
    known, first, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    at = np.searchsorted(known, wanted)
    alone: NDArray[np.bool_] = (count[at] == 1) & (pairs[first[at], 1] == origins)
    return alone
