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
from numpy.typing import NDArray

RESAMPLES = 2000
TOGETHER = 0.97
"""Confidence of the intervals of differences, all at once. Simulated pairs of equal runs (8 to 150 identities) are then
called different in 2 to 4% of trials; at 0.95 in 4 to 6%, as resampling some tens of identities is not exact."""

FEWEST = 6
"""Identities below which nothing is said of differences: so few have too often none of what differs among them."""

_NORMAL = 1.959964  # standard deviations on either side that hold 95% of a normal distribution
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


def resample(sums: Sums, figures: Figures, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return `RESAMPLES` values of each figure, (R,). Equal seeds and numbers of identities draw the same ones."""
    random = np.random.default_rng(seed)
    count = len(sums.identities)
    parts = []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = random.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        parts.append(figures(drawn @ sums.values))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: NDArray[np.float64], identities: int) -> tuple[float, float]:
    """Return the interval that holds a figure with a confidence of 95%, from its (R,) resampled values.

    Percentiles, moved out as far as Student's distribution is wider than the normal one for so many identities
    (Hesterberg, What Teachers Should Know About the Bootstrap, 2015: expanded percentiles). NaN for a single one.
    """
    from scipy.special import ndtr

    if identities < 2:
        return np.nan, np.nan
    tail = float(ndtr(-_student(_NORMAL, identities)))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


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
    first: Mapping[str, float],
    second: Mapping[str, float],
    first_resampled: Mapping[str, NDArray[np.float64]],
    second_resampled: Mapping[str, NDArray[np.float64]],
    identities: int,
) -> dict[str, Difference]:
    """Compare two runs over the same query identities: each figure of the second less that of the first.

    Both must have been resampled with the same identities, as what is hard for one is mostly hard for the other. The
    intervals hold all at once with a confidence of 97% (by the largest studentised deviation over the figures; Romano
    and Wolf, Exact and Approximate Stepdown Methods for Multiple Hypothesis Testing, 2005), so that of equal runs at
    most one pair in twenty has any figure that is called different. Of fewer than `FEWEST` identities all is undecided.
    """
    names = [name for name in first_resampled if name in second_resampled]
    values = {name: second[name] - first[name] for name in names}
    resampled = {name: second_resampled[name] - first_resampled[name] for name in names}
    errors = {name: float(np.std(resampled[name])) for name in names}
    deviations = [np.abs(resampled[name] - resampled[name].mean()) / errors[name] for name in names if errors[name] > 0]
    if identities < FEWEST:
        return {name: Difference(values[name], -np.inf, np.inf) for name in names}
    factor = 0.0
    if deviations:
        factor = _student(float(np.quantile(np.max(deviations, axis=0), TOGETHER)), identities)
    return {
        name: Difference(values[name], values[name] - factor * errors[name], values[name] + factor * errors[name])
        for name in names
    }


def _student(deviations: float, count: int) -> float:
    """Return what becomes of a normal quantile for the mean of `count` values: the same quantile of Student's
    distribution, in standard deviations as `numpy.std` has them."""
    from scipy.special import ndtr, stdtrit

    return float(-stdtrit(count - 1, ndtr(-deviations)) * np.sqrt(count / (count - 1))) if count > 1 else np.inf
