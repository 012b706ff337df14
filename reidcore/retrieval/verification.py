"""Verification: are the two images of a pair of the same individual?

P: pairs; I: identities; F: folds; R: resamples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import DataError, ReidError
from reidcore.retrieval.bootstrap import Sums
from reidcore.retrieval.distance import Distances
from reidcore.retrieval.problem import Problem
from reidcore.retrieval.roc import COARSE_BINS, Curve, Scale, resampled_figures
from reidcore.types import UNKNOWN

FOLDS = 10


def start_pairs(problem: Problem) -> Verified:
    """Compare each query with the gallery image of the same row, of which there must be as many.

    Raises DataError if all pairs are of the same identity, or none is.
    """
    known = np.flatnonzero((problem.query.identities != UNKNOWN) & (problem.gallery.identities != UNKNOWN))
    distances = Distances(problem).pairs(known, known)
    same = problem.query.identities[known] == problem.gallery.identities[known]
    if same.all() or not same.any():
        raise DataError(f"all {len(same)} pairs are of {'the same' if same.all() else 'different'} identities")
    return Verified(
        problem.query.identities[known],
        distances,
        same,
        Scale(2.0 if problem.distance == "cosine" else 2 * problem.longest),
    )


class PairMetric:
    """What verification reports; its intervals are those of the curve."""

    def figures(self, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the figures, (R,), of coarse counts, (R, 2 x `COARSE_BINS`)."""
        return resampled_figures(sums)


@frozen(eq=False)
class Verified:
    """Compared pairs: identities (P,) of the first images, distances (P,), and whether both are the same (P,)."""

    identities: NDArray[np.int64]
    distances: NDArray[np.float32]
    same: NDArray[np.bool_]
    scale: Scale
    per_query: Mapping[str, NDArray[np.float64]] = {}

    def result(self) -> Mapping[str, float]:
        """Return TAR at FAR, AUC, and the accuracy over `FOLDS` consecutive parts of the pairs.

        The threshold of each part is the one that is most often right about the others (Huang et al., Labeled Faces in
        the Wild, 2007, view 2; its list of pairs comes in ten such parts). `accuracy` is the mean over the parts.
        """
        return self._curve.figures() | {"accuracy": float(np.mean(fold_accuracies(self.distances, self.same)))}

    @property
    def spread(self) -> Mapping[str, float]:
        """The standard deviation of the accuracy over the parts."""
        return {"accuracy": float(np.std(fold_accuracies(self.distances, self.same), ddof=1))}

    @property
    def curves(self) -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
        """The curve and the histograms (see `Curve.plots`)."""
        return {"roc": self._curve.plots()}

    @property
    def sums(self) -> Sums:
        """What `PairMetric.figures` are computed from, an identity."""
        places = Scale.coarse(self.scale.fine(self.distances)) + np.where(self.same, 0, COARSE_BINS)
        known, rows = np.unique(self.identities, return_inverse=True)
        values = np.zeros((len(known), 2 * COARSE_BINS))
        np.add.at(values, (rows, places), 1)
        return Sums(known, values)

    @property
    def _curve(self) -> Curve:
        return Curve.of(self.distances[self.same], self.distances[~self.same])


def fold_accuracies(distances: NDArray[np.float32], same: NDArray[np.bool_], folds: int = FOLDS) -> NDArray[np.float64]:
    """Return the share of right answers in each of `folds` consecutive parts, (F,), by a threshold from the others.

    distances: (P,); same: (P,). Of equally good thresholds the smallest one is taken. With fewer pairs than folds
    there is a fold a pair; one pair alone has no threshold, and ReidError is raised.
    """
    folds = min(folds, len(distances))
    if folds < 2:
        raise ReidError(f"accuracy needs at least 2 pairs; found {len(distances)}")
    parts = np.array_split(np.arange(len(distances)), folds)
    found = []
    for part in parts:
        rest = np.ones(len(distances), dtype=bool)
        rest[part] = False
        curve = Curve.of(distances[rest & same], distances[rest & ~same])
        right = np.concatenate([[0], np.cumsum(curve.genuine - curve.impostor)])
        best = int(np.argmax(right))
        threshold = curve.thresholds[best - 1] if best else -np.inf
        found.append(np.mean((distances[part] <= threshold) == same[part]))
    return np.array(found)
