"""Intervals and differences: that they hold as often as they say, and that pairs are compared as pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reidcore.retrieval import Features, evaluate
from reidcore.retrieval.bootstrap import Difference, Sums, differences, interval, resample


def mean(sums: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    return {"mean": sums[:, 0] / sums[:, 1]}


def of(identities: Any, values: Any) -> Sums:
    return Sums.of(np.array(identities), np.stack([values, np.ones(len(values))], axis=1))


def test_sums_are_over_the_queries_of_each_identity() -> None:
    sums = of([5, 2, 5], np.array([1.0, 2.0, 4.0]))
    assert sums.identities.tolist() == [2, 5] and sums.values.tolist() == [[2, 1], [5, 2]]
    joined = sums + of([7, 5], np.array([1.0, 1.0]))
    assert joined.identities.tolist() == [2, 5, 7] and joined.values.tolist() == [[2, 1], [6, 3], [1, 1]]


def test_the_spread_is_that_of_identities_and_not_of_queries() -> None:
    # 20 identities, all of whose 50 queries are alike: there are 20 observations, whatever the number of queries.
    random = np.random.default_rng(0)
    levels = random.normal(size=20)
    resampled = resample(of(np.repeat(np.arange(20), 50), np.repeat(levels, 50)), mean)["mean"]
    assert np.std(resampled) == pytest.approx(np.std(levels) / np.sqrt(20), rel=0.1)


@pytest.mark.parametrize("identities", [8, 40])
def test_intervals_hold_the_truth_nineteen_times_of_twenty(identities: int) -> None:
    random = np.random.default_rng(identities)
    held = 0
    trials = 400
    for _ in range(trials):
        values = random.normal(size=identities) + 3
        low, high = interval(resample(of(np.arange(identities), values), mean)["mean"], identities)
        held += low <= 3 <= high
    # 400 trials: a share of 0.95 varies by 0.011
    assert held / trials >= 0.92


def test_one_identity_has_no_interval() -> None:
    assert np.isnan(interval(resample(of([1, 1], np.array([0.0, 1.0])), mean)["mean"], 1)).all()


def run(random: np.random.Generator, hard: NDArray[np.float64], identities: int) -> tuple[dict[str, float], Any]:
    """Figures of a run whose queries are found with a chance that depends on their identity."""
    labels = np.repeat(np.arange(identities), 4)
    chance = np.clip(hard[labels] + 0.15 * random.normal(size=len(labels)), 0, 1)
    hits = (random.random(len(labels)) < chance).astype(float)
    values = np.stack([hits, chance, chance**2, np.ones(len(labels))], axis=1)
    sums = Sums.of(labels, values)

    def figures(sums: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        return {name: sums[:, n] / sums[:, -1] for n, name in enumerate(("rank1", "mAP", "mINP"))}

    point = {name: float(value[0]) for name, value in figures(sums.values.sum(axis=0)[None]).items()}
    return point, resample(sums, figures)


@pytest.mark.parametrize("identities", [12, 60])
def test_equal_runs_are_called_different_in_at_most_a_twentieth_of_trials(identities: int) -> None:
    random = np.random.default_rng(identities)
    different = 0
    trials = 300
    for _ in range(trials):
        hard = random.random(identities)
        (first, ours), (second, theirs) = (run(random, hard, identities) for _ in range(2))
        found = differences(first, second, ours, theirs, identities)
        different += any(difference.verdict != "undecided" for difference in found.values())
    assert different / trials <= 0.05


def test_a_run_that_is_better_everywhere_is_called_better() -> None:
    random = np.random.default_rng(0)
    hard = random.uniform(0.2, 0.7, 60)
    (first, ours), (second, theirs) = run(random, hard, 60), run(random, hard + 0.15, 60)
    assert {d.verdict for d in differences(first, second, ours, theirs, 60).values()} == {"better"}
    assert {d.verdict for d in differences(second, first, theirs, ours, 60).values()} == {"worse"}


@pytest.mark.parametrize("identities", [1, 2, 5])
def test_of_very_few_identities_nothing_is_said(identities: int) -> None:
    random = np.random.default_rng(0)
    (first, ours), (second, theirs) = (run(random, random.random(identities), identities) for _ in range(2))
    assert {d.verdict for d in differences(first, second, ours, theirs, identities).values()} == {"undecided"}


def test_a_run_does_not_differ_from_itself() -> None:
    random = np.random.default_rng(0)
    first, ours = run(random, random.random(30), 30)
    assert set(differences(first, first, ours, ours, 30).values()) == {Difference(0.0, 0.0, 0.0)}


def test_pairs_are_compared_as_pairs() -> None:
    # Identities differ by far more than the runs do, in the same way in both.
    random = np.random.default_rng(0)
    levels = 10 * random.random(40)
    first, second = of(np.arange(40), levels), of(np.arange(40), levels + 0.1 + 0.01 * random.normal(size=40))
    figures = [{"mean": float(mean(s.values.sum(axis=0)[None])["mean"][0])} for s in (first, second)]
    found = differences(*figures, resample(first, mean), resample(second, mean), 40)["mean"]
    assert found.verdict == "better" and found.high - found.low < 0.02


def test_evaluate_reports_intervals_when_asked() -> None:
    random = np.random.default_rng(0)

    def side(count: int) -> Features:
        labels = random.integers(0, 20, count)
        centres = np.random.default_rng(1).normal(size=(20, 8))
        embeddings = centres[labels] + 2 * random.normal(size=(count, 8))
        return Features(embeddings.astype(np.float32), labels, random.integers(0, 3, count))

    query, gallery = side(100), side(300)
    metrics = ("cmc", "map", "minp", "recall", "roc")
    assert not evaluate(query, gallery, metrics=metrics).intervals
    result = evaluate(query, gallery, metrics=metrics, intervals=True)
    assert set(result.intervals) == set(result)
    for name, (low, high) in result.intervals.items():
        assert 0 <= low <= high <= 1 and low - 0.02 <= result[name] <= high + 0.02, name
    assert result.drawn == len(np.unique(query.identities))
    again = evaluate(query, gallery, metrics=metrics, intervals=True)
    other = evaluate(query, gallery, metrics=metrics, intervals=True, seed=1)
    assert again.intervals == result.intervals != other.intervals


@pytest.mark.parametrize("protocol", ["vehicleid", "single-gallery-shot", "multi-query"])
def test_protocols_with_repeats_have_intervals_too(protocol: str) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 20, 200)
    images = Features(
        (np.eye(20)[labels] + 0.5 * random.normal(size=(200, 20))).astype(np.float32),
        labels,
        random.integers(0, 3, 200),
    )
    result = evaluate(images.take(np.arange(80)), images.take(np.arange(80, 200)), protocol=protocol, intervals=True)
    for name, (low, high) in result.intervals.items():
        assert low <= result[name] <= high, name
