"""How sure a figure is: bootstrap over query identities.

Images of one identity resemble each other, so it is identities that are drawn with replacement, each with all its
queries. A figure has to be a function of sums over queries; these sums are kept an identity, and a resample is
a weighted sum of them.

Q: queries; I: query identities; S: sums that a metric keeps; R: resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from attrs import frozen
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
_AT_ONCE = 250  # resamples

Figures = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]
"""(R, S) sums -> each figure, (R,)."""


@frozen(eq=False)
class Sums:
    """Sums over the queries of each identity. identities: (I,) ascending; values: (I, S)."""

    identities: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, identities: NDArray[np.int64], values: NDArray[np.float64]) -> Sums:
        """Sum the (Q, S) values of queries by their (Q,) identities."""
        known, place = np.unique(identities, return_inverse=True)
        sums = np.zeros((len(known), values.shape[1]))
        np.add.at(sums, place, values)
        return cls(known, sums)

    def __add__(self, other: Sums) -> Sums:
        return Sums.of(np.concatenate([self.identities, other.identities]), np.concatenate([self.values, other.values]))


def intervals(sums: Sums, figures: Figures, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the interval that holds each figure with a confidence of 95%; NaN where there is one identity only.

    Percentiles of the bootstrap, moved out as far as Student's distribution is wider than the normal one for so many
    identities (Hesterberg, What Teachers Should Know About the Bootstrap, 2015: expanded percentiles).
    """
    from scipy.special import ndtr

    count = len(sums.identities)
    if count < 2:
        return dict.fromkeys(figures(sums.values.sum(axis=0)[None]), (np.nan, np.nan))
    tail = float(ndtr(-_student(count)))
    resampled = _resample(sums, figures, seed)
    return {name: _pair(np.quantile(values, [tail, 1 - tail])) for name, values in resampled.items()}


@frozen
class Difference:
    """How much a figure differs between two runs, the interval of that, and what follows."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "undecided" where the interval holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


def differences(
    first: list[tuple[Sums, Figures]], second: list[tuple[Sums, Figures]], seed: int = 0
) -> dict[str, Difference]:
    """Compare two runs over the same query identities: each figure of the second less that of the first.

    Both are resampled with the same identities, as what is hard for one is mostly hard for the other. The intervals
    hold all at once with a confidence of 95% (by the largest studentised deviation over the figures; Romano and Wolf,
    Exact and Approximate Stepdown Methods for Multiple Hypothesis Testing, 2005), so that of equal runs at most one
    pair in twenty has any figure that is called different.
    """
    found: dict[str, tuple[float, NDArray[np.float64]]] = {}
    count = len(first[0][0].identities)
    for (ours, figures), (theirs, _) in zip(first, second, strict=True):
        before, after = (figures(sums.values.sum(axis=0)[None]) for sums in (ours, theirs))
        resampled = [_resample(sums, figures, seed) for sums in (ours, theirs)]
        for name in before:
            found[name] = float(after[name][0] - before[name][0]), resampled[1][name] - resampled[0][name]
    errors = {name: float(np.std(values)) for name, (_, values) in found.items()}
    deviations = [np.abs(values - value) / errors[name] for name, (value, values) in found.items() if errors[name] > 0]
    factor = 0.0
    if deviations:
        largest = float(np.quantile(np.max(deviations, axis=0), CONFIDENCE))
        factor = largest * _student(count) / _student(10**9) if count > 1 else np.inf
    return {
        name: Difference(value, value - factor * errors[name], value + factor * errors[name])
        for name, (value, _) in found.items()
    }


def _student(count: int) -> float:
    """Return the two-sided quantile for the mean of `count` values, in standard deviations as `numpy.std` has them."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2) * np.sqrt(count / (count - 1)))


def _resample(sums: Sums, figures: Figures, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return `RESAMPLES` values of each figure; equal seeds and numbers of identities draw the same identities."""
    random = np.random.default_rng(seed)
    count = len(sums.identities)
    parts = []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = random.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        parts.append(figures(drawn @ sums.values))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pair(values: ArrayLike) -> tuple[float, float]:
    low, high = np.asarray(values, dtype=np.float64)
    return float(low), float(high)
