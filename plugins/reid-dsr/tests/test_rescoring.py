from itertools import pairwise

import numpy as np
import pytest
import torch
from attrs import evolve

from reid_dsr import rescoring
from reid_dsr.rescoring import BLENDS, Choosing, Rescoring
from reidcore.errors import ContractError
from reidcore.retrieval import Features, Problem, evaluate, rank
from reidcore.retrieval.postprocess import Final, choose


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(random, images, cells, channels, half=True, identities=4):
    """Return features whose cells resemble each other, as those of neighbouring windows do."""
    labels = np.arange(images) % identities
    base = np.random.default_rng(5).random((identities, 1, channels))[labels]
    shaped = unit(random.random((images, cells, channels)) ** 3 + base)
    weights = random.random((images, cells))
    return Features(
        (random.normal(size=(images, 6)) + labels[:, None]).astype(np.float32),
        labels,
        np.arange(images) // identities % 2,
        extras={
            "cells": shaped.astype(np.float16 if half else np.float32),
            "weights": (weights / weights.sum(1, keepdims=True)).astype(np.float32),
        },
    )


def make(queries=5, gallery=7, query_cells=9, gallery_cells=13, channels=48, **options):
    random = np.random.default_rng(0)
    return Problem(
        features(random, queries, query_cells, channels, **options),
        features(random, gallery, gallery_cells, channels, **options),
    )


def distances(problem, part, block_bytes=1 << 29):
    return np.concatenate([found for _, found in Final.of(problem, [part], block_bytes).blocks()])


def least_squares(problem, ridge):
    """Reconstruct cell by cell, in float64: ridge regression is least squares with rows sqrt(ridge) * identity."""
    query, gallery = problem.query, problem.gallery
    found = np.zeros((len(query), len(gallery)))
    for q in range(len(query)):
        for g in range(len(gallery)):
            y = unit(gallery.extras["cells"][g].astype(np.float64)).T
            system = np.concatenate([y, np.sqrt(ridge) * np.eye(y.shape[1])])
            for n, cell in enumerate(unit(query.extras["cells"][q].astype(np.float64))):
                z = np.linalg.lstsq(system, np.concatenate([cell, np.zeros(y.shape[1])]), rcond=None)[0]
                found[q, g] += query.extras["weights"][q, n] * np.linalg.norm(cell - y @ z)
    return found


@pytest.mark.parametrize("ridge", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize(("query_cells", "gallery_cells", "channels"), [(9, 13, 48), (13, 9, 48), (6, 20, 12)])
def test_the_distance_is_that_of_least_squares_for_each_cell(ridge, query_cells, gallery_cells, channels):
    problem = make(query_cells=query_cells, gallery_cells=gallery_cells, channels=channels)
    found = distances(problem, Rescoring(blend=1, ridge=ridge))
    np.testing.assert_allclose(found, least_squares(problem, ridge), rtol=0, atol=1e-4)


def test_the_distance_at_the_published_size():
    problem = make(2, 3, 110, 110, 2048)
    np.testing.assert_allclose(distances(problem, Rescoring(blend=1)), least_squares(problem, 1e-3), rtol=0, atol=1e-4)


def test_few_of_many_are_compared_as_all_are():
    problem = make(queries=20, gallery=30)
    everything = distances(problem, Rescoring(k=30, blend=1))
    for k in (1, 4, 14, 15, 29):
        indices, _ = rank(problem.query, problem.gallery, k)
        found = distances(problem, Rescoring(k=k, blend=1))
        rows = np.arange(20)[:, None]
        np.testing.assert_allclose(found[rows, indices], everything[rows, indices], rtol=0, atol=1e-6)
        others = np.ones(found.shape, bool)
        others[rows, indices] = False
        assert (found[others] == 1).all()


def test_pieces_change_nothing(monkeypatch):
    problem = make(queries=20, gallery=30)
    whole = distances(problem, Rescoring(blend=1))
    monkeypatch.setattr(rescoring, "QUERY_BYTES", 3 * 9 * 48 * 4)
    monkeypatch.setattr(rescoring, "_ITEMS", 3)
    monkeypatch.setattr(rescoring, "_ROWS", 10)
    monkeypatch.setattr(rescoring, "_NUMBERS", 50)
    for k in (10, 30):
        found, expected = (distances(problem, Rescoring(k=k, blend=1), size) for size in (1, 1 << 29))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-6)


def test_an_image_reconstructs_itself_as_the_ridge_goes_to_0():
    random = np.random.default_rng(0)
    side = features(random, 6, 12, 40)
    found = [np.diag(distances(Problem(side, side), Rescoring(blend=1, ridge=10.0**-n))).max() for n in range(1, 9)]
    assert all(after < before for before, after in pairwise(found))
    assert found[-1] < 1e-6


def test_the_order_of_the_gallery_cells_does_not_matter():
    problem = make()
    order = np.random.default_rng(1).permutation(13)
    gallery = problem.gallery
    shuffled = evolve(gallery, extras={"cells": gallery.extras["cells"][:, order]})
    for match in ("reconstruction", "best"):
        part = Rescoring(match, blend=1)
        found = distances(evolve(problem, gallery=shuffled), part)
        np.testing.assert_allclose(found, distances(problem, part), rtol=0, atol=1e-6)


def test_a_cell_that_is_not_there_counts_whole_by_hand():
    def side(cells, weights):
        extras = {"cells": np.array([cells], np.float32), "weights": np.array([weights], np.float32)}
        return Features(np.ones((1, 2), np.float32), np.array([0]), np.array([0]), extras=extras)

    # of the query's cells the gallery has the first, as it is, and the second as a mixture of two; not the third
    half = 0.5**0.5
    query = side([[1, 0, 0, 0], [0, half, half, 0], [0, 0, 0, 1]], [0.5, 0.3, 0.2])
    gallery = side([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [0.2, 0.4, 0.4])
    reconstructed = distances(Problem(query, gallery), Rescoring(blend=1, ridge=1e-8))
    assert reconstructed[0, 0] == pytest.approx(0.2, abs=1e-6)
    assert distances(Problem(query, gallery), Rescoring("best", blend=1))[0, 0] == pytest.approx(
        1 - (1 + half + 0) / 3, abs=1e-6
    )
    # a ridge of 1 halves what an orthonormal cell reconstructs
    assert distances(Problem(query, gallery), Rescoring(blend=1, ridge=1))[0, 0] == pytest.approx(
        0.5 * 0.5 + 0.3 * 0.5 + 0.2, abs=1e-6
    )


def test_best_match_equals_three_loops():
    problem = make(channels=20)
    expected = np.zeros((5, 7))
    for q, x in enumerate(problem.query.extras["cells"].astype(np.float64)):
        for g, y in enumerate(problem.gallery.extras["cells"].astype(np.float64)):
            expected[q, g] = 1 - np.mean([max(unit(cell) @ unit(other) for other in y) for cell in x])
    np.testing.assert_allclose(distances(problem, Rescoring("best", blend=1)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("match", ["reconstruction", "best"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_distances_are_blended_and_the_others_stay_behind(match, distance):
    problem = evolve(make(queries=10, gallery=30), distance=distance)
    before = np.concatenate([d for _, d in Final.of(problem, []).blocks()])
    cells = distances(problem, Rescoring(match, k=30, blend=1))
    for blend in (0, 0.3, 0.8):
        found = distances(problem, Rescoring(match, k=8, blend=blend))
        for row in range(10):
            order = before[row].argsort(kind="stable")
            near, far = order[:8], order[8:]
            expected = (1 - blend) * before[row] + blend * cells[row]
            np.testing.assert_allclose(found[row, near], expected[near], atol=1e-6)
            assert found[row, near].max() <= found[row, far].min()
            assert (np.diff(found[row, far]) >= 0).all()
    np.testing.assert_allclose(distances(problem, Rescoring(match, blend=0)), before, atol=1e-7)


def test_of_equal_distances_the_first_are_compared():
    problem = make(queries=3, gallery=12)
    same = evolve(problem.gallery, embeddings=np.ones((12, 6), np.float32))
    found = distances(evolve(problem, gallery=same), Rescoring(k=4, blend=1))
    assert (found[:, :4] < 1).all()
    assert (found[:, 4:] == 1).all()


def test_the_blend_is_chosen_by_map_on_the_given_problem():
    problem = make(queries=16, gallery=40, half=False)
    choosing = Choosing(Rescoring(k=40))
    chosen = choose(problem, [choosing])["dsr blend"]
    scores = [
        evaluate(problem.query, problem.gallery, postprocess=[Rescoring(k=40, blend=float(b))])["mAP"] for b in BLENDS
    ]
    assert min(scores) < max(scores)
    assert chosen == BLENDS[np.argmax(scores)]
    assert distances(problem, choosing) == pytest.approx(distances(problem, Rescoring(k=40, blend=chosen)), abs=1e-6)


def test_the_blend_is_chosen_on_what_the_parts_before_leave():
    problem = make(queries=16, gallery=40, half=False)
    squared = Squared()
    choosing = Choosing(Rescoring(k=40))
    chosen = choose(problem, [squared, choosing])["dsr blend"]
    scores = [
        evaluate(problem.query, problem.gallery, postprocess=[squared, Rescoring(k=40, blend=float(b))])["mAP"]
        for b in BLENDS
    ]
    assert chosen == BLENDS[np.argmax(scores)]
    assert chosen != choose(problem, [Choosing(Rescoring(k=40))])["dsr blend"]


class Squared:
    """Squares distances, which changes no ranking but every blend."""

    stage, needs = "rows", ()

    def prepare(self, problem):
        self.problem = problem
        return self

    def rows(self, rows, distances):
        return distances**2


def test_without_held_out_identities_nothing_can_be_chosen():
    problem = make()
    with pytest.raises(ContractError, match=r"evaluation\.holdout keeps out"):
        evaluate(problem.query, problem.gallery, postprocess=[Choosing(Rescoring())])


def test_cells_are_compared_by_their_directions_and_zeros_are_nothing():
    problem = make(half=False)
    random = np.random.default_rng(2)
    for match in ("reconstruction", "best"):
        expected = distances(problem, Rescoring(match, blend=1))
        scaled = [
            evolve(
                s,
                extras=s.extras
                | {"cells": s.extras["cells"] * random.uniform(0.5, 2, (len(s), s.extras["cells"].shape[1], 1))},
            )
            for s in (problem.query, problem.gallery)
        ]
        found = distances(evolve(problem, query=scaled[0], gallery=scaled[1]), Rescoring(match, blend=1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    query, gallery = (s.extras["cells"].copy() for s in (problem.query, problem.gallery))
    query[:, 4] = gallery[:, :6] = 0
    emptied = Problem(
        evolve(problem.query, extras=problem.query.extras | {"cells": query}),
        evolve(problem.gallery, extras={"cells": gallery}),
    )
    weights = problem.query.extras["weights"].copy()
    weights[:, 4] = 0
    without = Problem(
        evolve(problem.query, extras={"cells": problem.query.extras["cells"], "weights": weights}),
        evolve(problem.gallery, extras={"cells": gallery[:, 6:]}),
    )
    part = Rescoring(blend=1)
    np.testing.assert_allclose(distances(emptied, part), distances(without, part), rtol=0, atol=1e-6)


def reconstructed(left):
    """Return a problem whose diagonal's queries are mixtures of gallery cells but for a rest of length `left`."""
    random = np.random.default_rng(0)
    gallery = features(random, 3, 20, 64, half=False)
    mixed = np.einsum("inm,imc->inc", random.random((3, 9, 20)), gallery.extras["cells"].astype(np.float64))
    other = random.normal(size=mixed.shape)
    other -= other @ np.linalg.pinv(gallery.extras["cells"].astype(np.float64)) @ gallery.extras["cells"]
    cells = (unit(mixed) + left * unit(other)).astype(np.float32)
    query = features(random, 3, 9, 64)
    return Problem(evolve(query, extras=query.extras | {"cells": cells}), gallery)


@pytest.mark.parametrize("left", [0.02, 0.03, 0.04, 0.1])
def test_little_that_is_left_is_exact_too(left):
    problem = reconstructed(left)
    for ridge in (1e-3, 1e-5, 1e-8):
        found = distances(problem, Rescoring(blend=1, ridge=ridge))
        expected = least_squares(problem, ridge)
        assert expected.diagonal().max() < 1.2 * left
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_features_and_options_that_make_no_sense_are_refused():
    problem = make()
    cells, weights = problem.query.extras["cells"], problem.query.extras["weights"]
    bad = evolve(problem.query, extras={"cells": cells, "weights": weights[:, 1:]})
    with pytest.raises(ContractError, match=r"weights have shape \(5, 8\); expected \(5, 9\), one a cell"):
        distances(evolve(problem, query=bad), Rescoring())
    for side in ("query", "gallery"):
        extras = {name: values.copy() for name, values in getattr(problem, side).extras.items()}
        extras["cells"][2, 3, 4] = np.nan
        with pytest.raises(ContractError, match="some cells are not finite"):
            distances(evolve(problem, **{side: evolve(getattr(problem, side), extras=extras)}), Rescoring())
    for options in ({"k": 0}, {"ridge": 0.0}, {"blend": 1.5}):
        with pytest.raises(ContractError, match="expected k of at least 1, blend from 0 to 1, and ridge above 0"):
            Rescoring(**options)


def test_cells_of_another_network_are_refused():
    problem = make()
    other = evolve(problem.gallery, extras=features(np.random.default_rng(0), 7, 13, 20).extras)
    with pytest.raises(ContractError, match=r"cells have shapes \(5, 9, 48\) and \(7, 13, 20\)"):
        distances(evolve(problem, gallery=other), Rescoring())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("k", [4, 30])
@pytest.mark.parametrize("match", ["reconstruction", "best"])
def test_a_gpu_computes_the_same(match, k):
    problem = make(queries=20, gallery=30)
    part = Rescoring(match, k=k)
    found = distances(evolve(problem, device="cuda"), part)
    np.testing.assert_allclose(found, distances(problem, part), rtol=0, atol=1e-5)
