"""Protocols: what is compared, which gallery images are a query's matches, which are junk.

A match is an image of the query's identity. Some of them are too easy to count, those that share the query's *origin*:
its camera, or the very image where cameras play no role. They are junk, which is taken out of the ranking as if it were
not in the gallery (Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015).

cross-camera         a match comes from another camera (Market-1501, DukeMTMC, MSMT17)
multi-query          cross-camera with one query an identity and camera: the mean of its images (Zheng et al. 2015)
single-gallery-shot  cross-camera with one random gallery image an identity (Li et al., DeepReID, CVPR 2014: CUHK03)
all-cameras          cameras play no role; the query's own image is junk: that of the same path, or of the same row if
                     both sides are the same array (CUB, Cars, Stanford Online Products)
in-shop              the same by its name in the literature (Liu et al., DeepFashion, CVPR 2016)
vehicleid            of all images one an identity, at random, is the gallery, the others are the queries; cameras play
                     no role (Liu et al., Deep Relative Distance Learning, CVPR 2016)
verification         pairs, the same or not (Huang et al., Labeled Faces in the Wild, 2007); see `verify`

What is drawn at random is drawn `REPEATS` times; figures are means over these.

Q G: queries and gallery; N: images.
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

CROSS_CAMERA, MULTI_QUERY, SINGLE_SHOT = "cross-camera", "multi-query", "single-gallery-shot"
ALL_CAMERAS, IN_SHOP, VEHICLEID, VERIFICATION = "all-cameras", "in-shop", "vehicleid", "verification"
BY_CAMERA = (CROSS_CAMERA, MULTI_QUERY, SINGLE_SHOT)
PROTOCOLS = (*BY_CAMERA, ALL_CAMERAS, IN_SHOP, VEHICLEID, VERIFICATION)
REPEATS = 10


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise a ReidError that suggests the nearest name unless `name` is one of `known`."""
    known = tuple(known)
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ReidError(f"unknown {what} '{name}'; expected {', '.join(known[:-1])} or {known[-1]}{hint}")


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
    query_groups: Any = None,
) -> Coverage:
    """Count the queries that have a match, from the labels alone: before a single image is read.

    Identities and cameras are (Q,) and (G,) integers. Paths tell where a query is in the gallery itself, groups (Q,)
    which queries are joined by `multi-query`.
    Raises ReidError for an unknown protocol, and for pairs to verify that are none.
    """
    check_name("protocol", protocol, PROTOCOLS)
    wanted, identities, cameras, gallery_cameras = (
        np.asarray(labels, dtype=np.int64)
        for labels in (query_identities, gallery_identities, query_cameras, gallery_cameras)
    )
    images = image_numbers(query_paths, gallery_paths)
    if protocol == MULTI_QUERY:
        first = np.unique(multi_queries(wanted, cameras, query_groups), return_index=True)[1]
        wanted, cameras = wanted[first], cameras[first]
    elif protocol == VEHICLEID:
        wanted = np.concatenate([wanted, identities])[distinct(images, len(wanted), len(identities))]
        known = wanted[wanted != UNKNOWN]
        queries = len(wanted) - len(np.unique(known))
        return Coverage(
            queries, covered=queries - int((wanted == UNKNOWN).sum()), absent=int((wanted == UNKNOWN).sum())
        )
    elif protocol == VERIFICATION:
        if len(wanted) != len(identities):
            raise ReidError(
                f"verification compares row with row; found {len(wanted)} queries and {len(identities)} gallery images"
            )
        unknown = int(((wanted == UNKNOWN) | (identities == UNKNOWN)).sum())
        return Coverage(len(wanted), covered=len(wanted) - unknown, absent=unknown)
    origins = (cameras, gallery_cameras) if protocol in BY_CAMERA else images
    present = np.isin(wanted, identities) & (wanted != UNKNOWN)
    alone = np.zeros_like(present)
    if origins and present.any():
        alone[present] = _same_origin(wanted[present], origins[0][present], identities, origins[1])
    seen = np.union1d(cameras, gallery_cameras)
    return Coverage(
        queries=len(wanted),
        covered=int((present & ~alone).sum()),
        absent=int((~present).sum()),
        one_camera=int(alone.sum()) if protocol in BY_CAMERA else 0,
        itself=0 if protocol in BY_CAMERA else int(alone.sum()),
        camera=int(seen[0]) if len(seen) == 1 else None,
    )


def multi_queries(identities: NDArray[Any], cameras: NDArray[Any], groups: Any = None) -> NDArray[np.int64]:
    """Return the number of the joint query that each image belongs to, (Q,): that of its group, if it is told, else of
    its identity and camera. An image of unknown identity is a query of its own."""
    keys = [identities, cameras, np.where(identities == UNKNOWN, np.arange(len(identities)), -1)]
    if groups is not None:
        keys = [np.asarray(groups)]
    _, first, joint = np.unique(np.stack(keys, axis=1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # numbered in the order in which they come
    return order[joint.ravel()]


def distinct(
    images: tuple[NDArray[np.int64], NDArray[np.int64]] | None, queries: int, gallery: int
) -> NDArray[np.int64]:
    """Return the numbers of the first appearances in queries and gallery, joined, of each image."""
    if images is None:
        return np.arange(queries + gallery)
    return np.sort(np.unique(np.concatenate(images), return_index=True)[1])


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
