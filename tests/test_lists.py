"""Rank lists against a slow reference, and against the figures that they explain."""

import numpy as np
import pytest

from reidcore.retrieval import distance as distance_module
from reidcore.retrieval.evaluation import evaluate
from reidcore.retrieval.lists import HardPairs, Rankings
from reidcore.types import Features

COSINE = "cosine"


def features(count: int, seed: int, coarse: bool = False, prefix: str = "g") -> Features:
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(count, 8)).astype(np.float32)
    if coarse:  # so that there are ties
        embeddings = random.integers(0, 2, (count, 3)).astype(np.float32) + np.float32(0.5)
    return Features(
        embeddings,
        random.integers(-1, 7, count),
        random.integers(0, 3, count),
        [f"{prefix}{number}" for number in range(count)],
    )


def slow(query: Features, gallery: Features, number: int, cross_camera: bool):
    """Return (image, distance, right) of all that is ranked for a query, by loops."""
    rows = []
    for image in range(len(gallery)):
        same = query.identities[number] == gallery.identities[image] != -1
        if same and cross_camera and query.cameras[number] == gallery.cameras[image]:
            continue
        x, y = (np.float64(each) for each in (query.embeddings[number], gallery.embeddings[image]))
        far = np.float32(1) - np.float32(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        rows.append((far, bool(same), image))
    rows.sort()
    return [(image, far, right) for far, right, image in rows]


@pytest.mark.parametrize("small", [2**40, 0], ids=["exact blocks", "rounded blocks"])
@pytest.mark.parametrize("coarse", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("protocol", ["cross-camera", "all-cameras"])
def test_lists_are_those_of_loops_and_explain_the_figures(protocol, coarse, small, monkeypatch):
    monkeypatch.setattr(distance_module, "SMALL", small)
    query, gallery = features(25, 0, coarse, "q"), features(60, 1, coarse)
    rankings = Rankings.of(query, gallery, protocol=protocol)
    result = evaluate(query, gallery, protocol=protocol)
    np.testing.assert_allclose(rankings.average_precision, result.per_query["AP"], rtol=1e-12)
    numbers = [7, 3, 24, 3]
    for number, found in zip(numbers, rankings.lists(numbers, 10), strict=True):
        ranked = slow(query, gallery, number, protocol == "cross-camera")
        assert found.query == number
        assert found.images.tolist() == [image for image, _, _ in ranked[:10]]
        np.testing.assert_allclose(found.distances, [far for _, far, _ in ranked[:10]], atol=1e-6)
        assert found.right.tolist() == [right for _, _, right in ranked[:10]]
        missed = [(image, place) for place, (image, _, right) in enumerate(ranked, 1) if right and place > 10]
        assert list(zip(found.missed.tolist(), found.missed_places.tolist(), strict=True)) == missed
        np.testing.assert_equal(found.average_precision, rankings.average_precision[number])
    for number in range(25):
        first, _, right = slow(query, gallery, number, protocol == "cross-camera")[0]
        known = not np.isnan(rankings.average_precision[number])
        assert (rankings.first_wrong[number] >= 0) == (known and not right)
        if known and not right and not coarse:
            assert rankings.first_wrong[number] == first


@pytest.mark.parametrize("protocol", ["single-gallery-shot", "vehicleid", "multi-query", "in-shop"])
def test_protocols_that_draw_or_join_show_their_first_draw(protocol):
    random = np.random.default_rng(3)
    identities, cameras = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
    embeddings = random.normal(size=(30, 4)).astype(np.float32)
    query = Features(embeddings[::2], identities[::2], cameras[::2], [f"i{n}" for n in range(0, 30, 2)])
    gallery = Features(embeddings[1::2], identities[1::2], cameras[1::2], [f"i{n}" for n in range(1, 30, 2)])
    rankings = Rankings.of(query, gallery, protocol=protocol)
    judged = np.flatnonzero(~np.isnan(rankings.average_precision))
    assert len(judged)
    for found in rankings.lists(judged, 4):
        name = rankings.query.paths[found.query]
        assert int(rankings.query.identities[found.query]) == int(name[1:]) // 5
        for image, right in zip(found.images, found.right, strict=True):
            assert right == (int(rankings.gallery.paths[image][1:]) // 5 == int(name[1:]) // 5)
        if protocol == "vehicleid":  # one image an identity, and the others are queries
            assert len(rankings.gallery) == 6 and len(rankings.query) == 24
        if protocol == "single-gallery-shot":
            assert found.right.sum() + len(found.missed) == 1


def test_confusions_are_counted_by_identity():
    gallery = Features(np.array([[1, 0], [0, 1], [-1, 0.1]], np.float32), np.array([0, 1, 2]), np.array([1, 1, 1]))
    near = {0: [1, 0.1], 1: [0.1, 1], 2: [-1, 0]}
    taken_for = [(1, 0), (1, 0), (2, 1), (1, 1), (2, 0)]
    query = Features(
        np.array([near[found] for _, found in taken_for], np.float32),
        np.array([identity for identity, _ in taken_for]),
        np.zeros(5, int),
    )
    confusions = Rankings.of(query, gallery).confusions()
    assert [(a, b, queries.tolist()) for a, b, queries in confusions] == [(1, 0, [0, 1]), (2, 0, [4]), (2, 1, [2])]


def test_hard_pairs_are_the_far_ones_of_one_identity_and_the_near_ones_of_two():
    angles = np.deg2rad([0, 10, 80, 5, 60, 20])
    query = Features(np.tile(np.array([[1, 0]], np.float32), (6, 1)), np.arange(6), np.zeros(6, int))
    same = np.array([True, True, True, False, False, True])
    identities = np.where(same, np.arange(6), 9)
    identities[5] = -1
    gallery = Features(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), identities, np.zeros(6, int))
    pairs = HardPairs.of(query, gallery, 2)
    assert pairs.genuine.tolist() == [2, 1] and pairs.impostor.tolist() == [3, 4]
    np.testing.assert_allclose(pairs.genuine_distances, 1 - np.cos(angles[[2, 1]]), atol=1e-6)
