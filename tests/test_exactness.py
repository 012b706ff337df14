"""Large problems are computed in float32, and yet ranked as exactly as small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reidcore.builtin.modules.roc as roc_module
import reidcore.retrieval.distance as distance_module
from reidcore.retrieval import Features, Problem, evaluate, rank
from reidcore.retrieval.distance import Distances


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every problem as a large one."""
    monkeypatch.setattr(distance_module, "SMALL", 0)


def side(
    seed: int, count: int, dimension: int = 64, offset: float = 0, copies: int = 0, identities: int = 9
) -> Features:
    """Clustered embeddings; of each of the last `copies` there is an exact copy with another label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, identities, count)
    centres = np.random.default_rng(0).normal(size=(identities, dimension))
    embeddings = centres[labels] + random.normal(size=(count, dimension)) + offset
    if copies:
        embeddings[-copies:] = embeddings[:copies]
    return Features(embeddings.astype(np.float32), labels, random.integers(0, 3, count))


def exact(query: Features, gallery: Features, distance: str) -> dict[str, Any]:
    """The per-query values in float64, by sorting each row."""
    q, g = (np.asarray(s.embeddings, np.float64) for s in (query, gallery))
    if distance == "cosine":
        q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
        matrix = (1 - (q @ g.T).astype(np.float32)).astype(np.float32)
    else:
        matrix = np.stack([np.linalg.norm(row - g, axis=1) for row in q]).astype(np.float32)
    precisions = np.full(len(q), np.nan)
    for row, distances in enumerate(matrix):
        same = gallery.identities == query.identities[row]
        near = gallery.cameras == query.cameras[row]
        keep = ~(same & near)
        order = np.lexsort((same[keep], distances[keep]))  # a tie counts against the query
        hits = np.flatnonzero(same[keep][order])
        if len(hits):
            precisions[row] = np.mean(np.arange(1, len(hits) + 1) / (hits + 1))
    return {"AP": precisions, "matrix": matrix}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize("seed", range(3))
def test_figures_of_float32_blocks_are_those_of_float64(distance: str, offset: float, seed: int) -> None:
    query, gallery = side(seed, 60, offset=offset), side(seed + 50, 400, offset=offset, copies=100)
    assert Distances(Problem(query, gallery, distance=distance)).rounded
    before = query.embeddings.copy(), gallery.embeddings.copy()
    result = evaluate(query, gallery, distance=distance)
    np.testing.assert_array_equal(query.embeddings, before[0])
    np.testing.assert_array_equal(gallery.embeddings, before[1])
    np.testing.assert_allclose(result.per_query["AP"], exact(query, gallery, distance)["AP"], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_collapsed_model_is_judged_as_what_it_is(distance: str) -> None:
    # All images are at one point: every match is tied with every wrong image.
    random = np.random.default_rng(0)

    def collapsed(count: int) -> Features:
        embeddings = np.tile(np.linspace(1, 2, 256, dtype=np.float32), (count, 1))
        return Features(embeddings, random.integers(0, 40, count), random.integers(0, 3, count))

    query, gallery = collapsed(30), collapsed(700)
    result = evaluate(query, gallery, distance=distance)
    for row in range(len(query)):
        same = gallery.identities == query.identities[row]
        matches = int((same & (gallery.cameras != query.cameras[row])).sum())
        wrong = int((~same).sum())
        expected = np.mean([n / (wrong + n) for n in range(1, matches + 1)])
        assert result.per_query["AP"][row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("dimension", [1, 3, 64, 512, 2048])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["signed", "positive", "peaked"])
def test_what_is_allowed_for_rounding_is_enough(dimension: int, distance: str, kind: str) -> None:
    random = np.random.default_rng(dimension)

    def images(count: int) -> Features:
        embeddings = random.normal(size=(count, dimension)).astype(np.float32)
        if kind == "positive":  # sums grow to their full size, and with them the roundings
            embeddings = np.abs(embeddings)
        if kind == "peaked":  # the same few products, whose roundings add up in one direction
            level = np.exp(0.1 * random.normal(size=(count, 1)))
            embeddings = (np.where(random.random((count, dimension)) < 0.03, 1, 0.7) * level).astype(np.float32)
        return Features(embeddings, np.arange(count), np.zeros(count, int))

    distances = Distances(Problem(images(40), images(900), distance=distance))
    ((_, block),) = distances.blocks()
    for row, found in enumerate(block.numpy()):
        images = np.random.default_rng(1).permutation(900)[:300]
        rounding = distances.rounding(block.numpy(), 0, np.full(300, row), images)
        low, high = distances.around(np.full(900, row), found, rounding)
        truth = distances.pairs(np.full(900, row), np.arange(900))
        # half of the range is one distance's; a sixth is what is usual
        assert (truth >= found - (found - low) / 2).all() and (truth <= found + (high - found) / 2).all()


@pytest.mark.usefixtures("large")
@given(seed=st.integers(0, 10**6), k=st.integers(1, 80), distance=st.sampled_from(["cosine", "euclidean"]))
@settings(max_examples=25)
def test_rank_lists_of_float32_blocks_are_those_of_float64(seed: int, k: int, distance: str) -> None:
    query, gallery = side(seed, 7, dimension=33), side(seed + 1, 70, dimension=33, copies=30)
    indices, distances = rank(query, gallery, k, distance=distance)
    whole = Distances(Problem(query, gallery, distance=distance), exact=True)
    ((_, matrix),) = whole.blocks()
    expected = np.argsort(matrix.numpy(), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, np.take_along_axis(matrix.numpy(), expected, axis=1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neither_blocks_nor_threads_change_a_figure(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = side(3, 90), side(4, 500, copies=200)
    metrics = ("cmc", "map", "minp", "recall", "roc")
    results = []
    threads = torch.get_num_threads()
    try:
        for small in (2**22, 0):
            monkeypatch.setattr(distance_module, "SMALL", small)
            for budget in (2**28, 2**18):
                monkeypatch.setattr("reidcore.retrieval.evaluation.BLOCK_BYTES", budget)
                for count in (1, 2):
                    torch.set_num_threads(count)
                    results.append(dict(evaluate(query, gallery, distance=distance, metrics=metrics)))
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 8
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=0, abs=1e-6)


@pytest.mark.parametrize("small", [2**22, 0], ids=["exact", "rounded"])
def test_embeddings_may_be_half_precision_or_memory_mapped(
    small: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(distance_module, "SMALL", small)
    query, gallery = side(3, 20), side(4, 90)
    halves = [Features(s.embeddings.astype(np.float16), s.identities, s.cameras) for s in (query, gallery)]
    singles = [Features(s.embeddings.astype(np.float32), s.identities, s.cameras) for s in halves]
    assert dict(evaluate(*halves)) == dict(evaluate(*singles))
    np.save(tmp_path / "gallery.npy", gallery.embeddings)
    mapped = Features(np.load(tmp_path / "gallery.npy", mmap_mode="r"), gallery.identities, gallery.cameras)
    assert dict(evaluate(query, mapped)) == dict(evaluate(query, gallery))


@given(
    seed=st.integers(0, 10**6),
    distance=st.sampled_from(["cosine", "euclidean"]),
    copies=st.integers(0, 20),
    offset=st.sampled_from([0, 20]),
)
@settings(max_examples=25, deadline=None)
def test_every_metric_of_a_large_problem_is_that_of_a_small_one(
    seed: int, distance: str, copies: int, offset: float
) -> None:
    sides = [side(seed + n, count, 16, offset, copies) for n, count in enumerate((25, 150))]
    for features in sides:
        features.identities[:7] = -1
    metrics = ("cmc", "map", "minp", "recall", "roc")
    with pytest.MonkeyPatch.context() as patch:
        results = []
        for small in (2**22, 0):
            patch.setattr(distance_module, "SMALL", small)
            patch.setattr(roc_module, "SMALL", small)
            results.append(dict(evaluate(*sides, distance=distance, metrics=metrics)))
    roc = {name for name in results[0] if name.startswith(("TAR", "AUC"))}
    for name in results[0]:
        # one of some 300 genuine or 3,000 impostor pairs may share its bin with another
        assert results[1][name] == pytest.approx(results[0][name], abs=0.01 if name in roc else 1e-12), name


@pytest.mark.usefixtures("large")
def test_embeddings_too_long_or_short_for_float32_products_are_compared_in_float64() -> None:
    query, gallery = side(3, 20), side(4, 90)
    for factor in (1e20, 1e-25):
        scaled = [Features(s.embeddings * np.float32(factor), s.identities, s.cameras) for s in (query, gallery)]
        for distance in ("cosine", "euclidean"):
            expected = dict(evaluate(query, gallery, distance=distance))
            assert dict(evaluate(*scaled, distance=distance)) == pytest.approx(expected, abs=1e-12), (factor, distance)


def test_the_precision_of_a_training_does_not_reach_distances() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        evaluate(side(3, 20), side(4, 90))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
