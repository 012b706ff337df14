"""ROC figures against slow, obvious references."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reidcore.builtin.modules.roc as roc_module
from reidcore.builtin.modules.roc import ReceiverOperatingCharacteristic
from reidcore.errors import DataError
from reidcore.retrieval import Features, Problem, evaluate
from reidcore.retrieval.postprocess import Final
from reidcore.retrieval.roc import COARSE_BINS, FINE_BINS, Curve, Scale, resampled_figures

FARS = (1e-4, 1e-3, 1e-2, 0.1, 0.5)
distances = st.lists(st.integers(0, 6), min_size=1, max_size=20)


def reference(genuine: Any, impostor: Any) -> dict[str, float]:
    """Try every threshold; for the area compare every genuine pair with every impostor pair."""
    thresholds = [-1, *genuine, *impostor]
    found = {}
    for far in (1e-4, 1e-3, 1e-2):
        accepted = [
            np.mean([d <= t for d in genuine]) for t in thresholds if np.mean([d <= t for d in impostor]) <= far
        ]
        mantissa = f"{far:.0e}".replace("e-0", "e-")
        found[f"TAR@FAR={mantissa}"] = max(accepted)
    found["AUC"] = np.mean([1.0 if g < i else 0.5 if g == i else 0.0 for g in genuine for i in impostor])
    return found


@given(distances, distances)
def test_the_curve_equals_trying_every_threshold(genuine: list[int], impostor: list[int]) -> None:
    curve = Curve.of(np.array(genuine, np.float32), np.array(impostor, np.float32))
    assert curve.figures() == pytest.approx(reference(genuine, impostor), abs=1e-12)


def test_small_case_by_hand() -> None:
    # Genuine pairs at 1, 2, 4, 4; impostors at 3, 4, 5, 6, 7. Without any impostor the threshold is at most 2: TAR 2/4;
    # with one of five it may reach 3, which accepts no more; with two of five it reaches 4: TAR 4/4.
    curve = Curve.of(np.array([1, 2, 4, 4], np.float32), np.array([3, 4, 5, 6, 7], np.float32))
    figures = curve.figures((0.1, 0.2, 0.4))
    # pairs in order: 1 and 2 beat all five, each 4 beats three and ties one
    assert figures == {"TAR@FAR=1e-1": 0.5, "TAR@FAR=2e-1": 0.5, "TAR@FAR=4e-1": 1.0, "AUC": (5 + 5 + 3.5 + 3.5) / 20}


def labelled(seed: int, count: int, identities: int, noise: float = 1.0) -> Features:
    random = np.random.default_rng(seed)
    labels = random.integers(0, identities, count)
    centres = np.random.default_rng(0).normal(size=(identities, 32))
    embeddings = centres[labels] + noise * random.normal(size=(count, 32))
    return Features(embeddings.astype(np.float32), labels, random.integers(0, 4, count))


def pairs(query: Features, gallery: Features, distance: str) -> tuple[Any, Any]:
    """Genuine and impostor distances by plain loops, without queries that have no match, and without junk."""
    genuine: list[float] = []
    impostor: list[float] = []
    for q in range(len(query)):
        x = query.embeddings[q].astype(float)
        ours, theirs = [], []
        for g in range(len(gallery)):
            y = gallery.embeddings[g].astype(float)
            d = 1 - x @ y / np.sqrt((x @ x) * (y @ y)) if distance == "cosine" else np.sqrt(((x - y) ** 2).sum())
            if query.identities[q] != gallery.identities[g]:
                theirs.append(d)
            elif query.cameras[q] != gallery.cameras[g]:
                ours.append(d)
        if ours:
            genuine += ours
            impostor += theirs
    return np.array(genuine, np.float32), np.array(impostor, np.float32)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_all_pairs_but_junk_are_counted(distance: str) -> None:
    query, gallery = labelled(1, 15, 8), labelled(2, 60, 8)
    genuine, impostor = pairs(query, gallery, distance)
    result = evaluate(query, gallery, distance=distance, metrics=["roc"])
    assert dict(result) == pytest.approx(reference(genuine, impostor), abs=1e-9)
    curve = result.curves["roc"]
    assert (curve["far"][0], curve["tar"][0], curve["far"][-1], curve["tar"][-1]) == (0, 0, 1, 1)
    assert (np.diff(curve["far"]) >= 0).all() and (np.diff(curve["tar"]) >= 0).all()
    for side, values in (("genuine", genuine), ("impostor", impostor)):
        assert curve[side].sum() == pytest.approx(1)
        mean = (curve[side] * (curve["edges"][1:] + curve["edges"][:-1]) / 2).sum()
        assert mean == pytest.approx(values.mean(), abs=2 * np.diff(curve["edges"])[0])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("noise", [0.3, 1, 3])
def test_counted_in_bins_the_curve_is_within_a_ten_thousandth(
    distance: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery = labelled(1, 300, 40, noise), labelled(2, 2000, 40, noise)
    metric = ReceiverOperatingCharacteristic((1e-5, *FARS))
    exact = evaluate(query, gallery, distance=distance, metrics=[metric])
    monkeypatch.setattr(roc_module, "SMALL", 0)
    binned = evaluate(query, gallery, distance=distance, metrics=[metric])
    assert dict(binned) == pytest.approx(dict(exact), rel=0, abs=1e-4)


class Shifted:
    """Post-processor of stage rows that takes 1 from all distances."""

    stage = "rows"
    needs = ()

    def prepare(self, problem: Problem) -> Any:
        self.problem = problem
        return self

    def rows(self, rows: slice, distances: Any) -> Any:
        return distances - 1


@pytest.mark.parametrize("case", ["offset", "outlier", "negative", "copies"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_bins_suit_distances_of_any_size(case: str, distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = labelled(1, 100, 20, 0.7), labelled(2, 800, 20, 0.7)
    for side in (query, gallery):
        if case == "offset":
            side.embeddings[:] += 50
        if case == "copies":
            side.embeddings[::7] = side.embeddings[0]
    if case == "outlier":
        gallery.embeddings[5] *= 1e5
    more: dict[str, Any] = {"distance": distance, "metrics": ["roc"], "intervals": True}
    if case == "negative":
        more["postprocess"] = [Shifted()]
    exact = evaluate(query, gallery, **more)
    monkeypatch.setattr(roc_module, "SMALL", 0)
    binned = evaluate(query, gallery, **more)
    # a curve of 2,000 genuine pairs has steps of 5e-4: a bin may hold one of them
    assert dict(binned) == pytest.approx(dict(exact), rel=0, abs=1e-3)
    for name, (low, high) in binned.intervals.items():
        assert low - 0.02 <= exact[name] <= high + 0.02, name


def test_the_whole_binned_curve_is_within_a_ten_thousandth() -> None:
    random = np.random.default_rng(0)
    genuine = np.clip(random.normal(0.4, 0.15, 20_000), 0, 2).astype(np.float32)
    impostor = np.clip(random.normal(0.9, 0.1, 400_000), 0, 2).astype(np.float32)
    exact = Curve.of(genuine, impostor)
    scale = Scale(2.0)
    counts = [np.bincount(scale.fine(side), minlength=FINE_BINS) for side in (genuine, impostor)]
    numbers = np.flatnonzero(counts[0] + counts[1])
    binned = Curve(scale.edges(numbers), counts[0][numbers], counts[1][numbers])
    fars = np.concatenate([np.geomspace(1e-6, 1, 3000), np.linspace(0, 1, 3000)])
    tars = []
    for curve in (exact, binned):
        far, tar = curve.rates
        tars.append(tar[np.searchsorted(far, fars, side="right") - 1])
    assert np.abs(tars[0] - tars[1]).max() <= 1e-4


@given(st.lists(st.floats(-1, 40, width=32), min_size=1, max_size=40))
def test_bins_keep_the_order_and_end_at_their_edges(values: list[float]) -> None:
    scale = Scale(2.0)
    found = np.sort(np.array(values, np.float32))
    numbers = scale.fine(found)
    assert (np.diff(numbers) >= 0).all() and numbers.min() >= 0 and numbers.max() < FINE_BINS
    inside = (np.abs(found) > 2.0**-25) & (np.abs(found) < 32)
    edges = scale.edges(numbers.astype(np.int64))
    assert (found[inside] <= edges[inside]).all()
    assert (edges[inside] - found[inside] <= np.abs(found[inside]) * 2.0**-16).all()
    assert (Scale.coarse(numbers) < COARSE_BINS).all()


@pytest.mark.parametrize("small", [2**22, 0], ids=["kept", "binned"])
def test_merged_halves_equal_the_whole(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roc_module, "SMALL", small)
    problem = Problem(labelled(1, 30, 8), labelled(2, 60, 8))
    whole, first, second = (ReceiverOperatingCharacteristic(FARS).start(problem) for _ in range(3))
    for rows, block in Final.of(problem, [], block_bytes=2000).blocks():
        whole.update(problem.block(rows, block))
        (first if rows.start % 2 else second).update(problem.block(rows, block))
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.result() == whole.result()
    np.testing.assert_array_equal(first.sums.values, whole.sums.values)


def test_resampled_figures_of_the_data_itself_are_the_figures() -> None:
    query, gallery = labelled(1, 200, 30, 1.5), labelled(2, 900, 30, 1.5)
    problem = Problem(query, gallery)
    state = ReceiverOperatingCharacteristic(FARS).start(problem)
    for rows, block in Final.of(problem, []).blocks():
        state.update(problem.block(rows, block))
    coarse = resampled_figures(state.sums.values.sum(axis=0)[None], FARS)
    for name, value in state.result().items():
        assert coarse[name][0] == pytest.approx(value, abs=0.02), name  # bins are 1% of a distance wide


def test_pairs_of_one_kind_only_have_no_curve() -> None:
    one = Features(np.eye(3, dtype=np.float32), np.zeros(3, int), np.arange(3))
    with pytest.raises(DataError, match="roc: there is no impostor pair of a query and a gallery image"):
        evaluate(one, one, metrics=["roc"])
