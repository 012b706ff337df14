"""Receiver operating characteristic: which share of genuine pairs is accepted when impostors are.

A pair is accepted when its distance is at most a threshold. TAR, the true accept rate, is the accepted share of genuine
pairs (query and match), FAR, the false accept rate, that of impostor pairs. TAR at a FAR is the largest TAR of all
thresholds whose FAR is not above it.

T: thresholds; R: resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

FAR = (1e-4, 1e-3, 1e-2)
_POINTS = 2000
_BARS = 100

_BELOW, _ABOVE = 27, 4  # doublings below and above the largest distance that embeddings have
_FINE = 17  # bits of steps to a doubling
_COARSE = 5
_STEPS = (_BELOW + _ABOVE) << _FINE
FINE_BINS = 2 * _STEPS
COARSE_BINS = FINE_BINS >> (_FINE - _COARSE)


@frozen
class Scale:
    """Numbers distances in their order, in steps that grow with their size: 2^17 to each doubling.

    The number is cut out of the bits of the float, so it costs next to nothing. What is smaller than 2^-27 of
    `largest` counts as 0, and what is larger than 16 times it as that; distances may be negative.
    """

    largest: float

    def fine(self, distances: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the fine numbers of distances, below `FINE_BINS`; that of 0 is in the middle."""
        negative = bool(distances.size) and float(distances.min()) < 0
        bits = np.maximum((np.abs(distances) if negative else distances).view(np.int32), self._floor)
        bits -= self._floor - np.int32(_STEPS << (23 - _FINE))
        bits >>= 23 - _FINE
        np.minimum(bits, FINE_BINS - 1, out=bits)
        return np.where(distances < 0, FINE_BINS - 1 - bits, bits).astype(np.int32) if negative else bits

    @staticmethod
    def coarse(fine: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the coarse numbers, below `COARSE_BINS`: 32 to each doubling."""
        found: NDArray[np.int32] = fine >> (_FINE - _COARSE)
        return found

    def edges(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the largest distance of each fine number."""
        steps = numbers.astype(np.int64) - _STEPS
        size = np.where(steps < 0, -steps - 1, steps + 1)  # of the end that is farther up
        bits = (int(self._floor) + (size << (23 - _FINE)) - (steps >= 0)).astype(np.int32)
        return np.where(steps < 0, -bits.view(np.float32), bits.view(np.float32))

    @property
    def _floor(self) -> np.int32:
        return np.float32(self.largest * 2.0**-_BELOW).view(np.int32)


@frozen(eq=False)
class Curve:
    """The curve of thresholds, ascending: thresholds (T,), genuine and impostor (T,) pairs of exactly these distances
    (or of the bin that ends there)."""

    thresholds: NDArray[np.float32]
    genuine: NDArray[np.int64]
    impostor: NDArray[np.int64]

    @classmethod
    def of(cls, genuine: NDArray[np.float32], impostor: NDArray[np.float32]) -> Curve:
        """The exact curve of two sets of distances."""
        thresholds, place = np.unique(np.concatenate([genuine, impostor]), return_inverse=True)
        sides = (place[: len(genuine)], place[len(genuine) :])
        return cls(thresholds, *(np.bincount(side, minlength=len(thresholds)) for side in sides))

    @property
    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """FAR and TAR, both (T + 1,), from accepting nothing to accepting all."""
        far, tar = (np.concatenate([[0], np.cumsum(side)]) / side.sum() for side in (self.impostor, self.genuine))
        return far, tar

    def figures(self, fars: Sequence[float] = FAR) -> dict[str, float]:
        """TAR at each FAR, and the area under the curve, in which ties count half."""
        far, tar = self.rates
        found = {_name(limit): float(tar[np.searchsorted(far, limit, side="right") - 1]) for limit in fars}
        return found | {"AUC": _area(far, tar)}

    def plots(self) -> dict[str, NDArray[np.float64]]:
        """What is drawn: some 2000 points of the curve, dense where FAR is small, and the histograms of both sides.

        far, tar, threshold: (P,); edges: (B + 1,) of distances; genuine, impostor: (B,) shares of the pairs.
        """
        far, tar = self.rates
        steps = np.concatenate([np.geomspace(1e-7, 1, _POINTS), np.linspace(0, 1, _POINTS // 4)])
        kept = np.unique(np.concatenate([np.searchsorted(far, steps, side="right") - 1, [0, len(far) - 1]]))
        thresholds = np.concatenate([[-np.inf], self.thresholds.astype(np.float64)])
        finite = self.thresholds[np.isfinite(self.thresholds)] if np.isfinite(self.thresholds).any() else np.zeros(1)
        edges = np.linspace(min(0.0, float(finite[0])), float(finite[-1]) or 1.0, _BARS + 1)
        bars = [np.histogram(self.thresholds, edges, weights=side)[0] / side.sum() for side in self._sides]
        return {
            "far": far[kept],
            "tar": tar[kept],
            "threshold": thresholds[kept],
            "edges": edges,
            "genuine": bars[0],
            "impostor": bars[1],
        }

    @property
    def _sides(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.genuine, self.impostor


def resampled_figures(counts: NDArray[np.float64], fars: Sequence[float] = FAR) -> dict[str, NDArray[np.float64]]:
    """Return the figures, (R,) each, of coarse counts: (R, 2 x `COARSE_BINS`), genuine pairs first.

    Between the edges of bins TAR is interpolated.
    """
    sides = np.split(counts, 2, axis=1)
    with np.errstate(invalid="ignore"):  # a resample may be without pairs, and has no figure
        tars, rates = (np.cumsum(side, axis=1) / side.sum(axis=1, keepdims=True) for side in sides)
    pairs = [(np.concatenate([[0], far]), np.concatenate([[0], tar])) for far, tar in zip(rates, tars, strict=True)]
    found = {_name(limit): np.array([np.interp(limit, far, tar) for far, tar in pairs]) for limit in fars}
    return found | {"AUC": np.array([_area(far, tar) for far, tar in pairs])}


def _area(far: NDArray[np.float64], tar: NDArray[np.float64]) -> float:
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def _name(far: float) -> str:
    mantissa, exponent = f"{far:e}".split("e")
    return f"TAR@FAR={mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
