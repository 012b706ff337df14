"""Query expansion: images are replaced by means of themselves and their nearest gallery images.

Q G: queries and gallery; D: dimension of the embedding; k: neighbours taken; n: images of one block.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray
from torch import Tensor

from reidcore.retrieval import Features, Problem
from reidcore.retrieval.neighbours import as_points, nearest, nearest_among

_ROWS = 128  # images that are expanded at a time


@frozen(eq=False)
class Expansion:
    """Query expansion: a query q becomes (q + sum of w_i g_i) / (1 + sum of w_i) over its k nearest gallery images g_i.

    With alpha 0 every w_i is 1: equation 7 of the FastReID paper (average query expansion, Chum et al., Total Recall,
    ICCV 2007). Else w_i is the cosine of q and g_i to the power of alpha, 0 if it is negative (Radenovic et al.,
    Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2018). For the distance "cosine" the means are
    taken of normalised embeddings, so that a long one counts no more than a short one; for "euclidean" of the
    embeddings as they are.

    database: gallery images too, each by its k nearest others in the gallery (Arandjelovic and Zisserman, Three
    things everyone should know to improve object retrieval, CVPR 2012). All neighbours are those of the embeddings
    as they came, also where both sides are replaced.

    The reference system always replaces both sides, with queries among the neighbours, the image itself as one of
    the k, alpha 3, embeddings that are not normalised, and a division by k instead of the sum of the weights.
    """

    k: int = 5
    alpha: float = 0.0
    database: bool = False
    stage: Literal["features"] = "features"
    needs: tuple[str, ...] = ()

    def prepare(self, problem: Problem) -> Expanded:
        """Expand all images. A `k` beyond the size of the gallery means all of it."""
        query, gallery = problem.query, problem.gallery
        points = as_points((query, gallery), problem.distance, problem.device)
        found = nearest_among(points, len(query), self.k).indices
        new_query = self._expand(query, gallery, found, problem.distance)
        if self.database:
            points = as_points((gallery,), problem.distance, problem.device)
            found = nearest(points, self.k + 1).indices[:, 1:]  # without the image itself
            gallery = self._expand(gallery, gallery, found, problem.distance)
        return Expanded(evolve(problem, query=new_query, gallery=gallery))

    def _expand(self, side: Features, gallery: Features, found: NDArray[np.int64], distance: str) -> Features:
        """Return `side` with the means of its embeddings and those of the gallery's images `found`, (n, k)."""
        embeddings = np.empty(np.shape(side.embeddings), np.float32)
        for start in range(0, len(side), _ROWS):
            rows = slice(start, start + _ROWS)
            own = np.asarray(side.embeddings[rows], np.float64)
            total, weights = _ready(own, distance), np.ones((len(own), 1))
            direction = _ready(own, "cosine")
            for column in found[rows].T:
                others = np.asarray(gallery.embeddings)[column].astype(np.float64)
                cosines = (direction * _ready(others, "cosine")).sum(axis=1, keepdims=True)
                weight = cosines.clip(min=0) ** self.alpha
                total = total + weight * _ready(others, distance)
                weights += weight
            embeddings[rows] = total / weights
        return evolve(side, embeddings=embeddings)


def _ready(embeddings: NDArray[np.float64], distance: str) -> NDArray[np.float64]:
    """Return (n, D) embeddings as the distance sees them: normalised for "cosine"."""
    if distance == "euclidean":
        return embeddings
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    normalised: NDArray[np.float64] = embeddings / np.maximum(lengths, np.finfo(np.float64).tiny)
    return normalised


@frozen(eq=False)
class Expanded:
    """A problem with expanded embeddings."""

    problem: Problem

    def rows(self, rows: slice, distances: Tensor) -> Tensor:
        """Leave the distances, which are those of the expanded embeddings, as they are."""
        return distances
