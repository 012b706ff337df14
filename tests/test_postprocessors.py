"""Post-processors against slow, obvious references, and against small cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

from reidcore.builtin.modules.k_reciprocal import ReRanking
from reidcore.builtin.modules.query_expansion import Expansion
from reidcore.errors import ContractError, ReidError
from reidcore.retrieval import Features, Problem, evaluate, jaccard, rank
from reidcore.retrieval.neighbours import as_points, nearest, nearest_among
from reidcore.retrieval.postprocess import Final


def features(embeddings: Any, identities: Any = None, **more: Any) -> Features:
    embeddings = np.asarray(embeddings, np.float32)
    identities = np.zeros(len(embeddings), int) if identities is None else np.asarray(identities)
    return Features(embeddings, identities, np.zeros(len(embeddings), int), **more)


def clustered(seed: int, queries: int, gallery: int, dimension: int = 12, offset: float = 0.0) -> Problem:
    """Identities are centres with noise around them; everything may be far from the origin."""
    random = np.random.default_rng(seed)
    identities = random.integers(0, max(2, (queries + gallery) // 8), queries + gallery)
    centres = random.normal(size=(identities.max() + 1, dimension)) + offset
    embeddings = centres[identities] + random.normal(size=(len(identities), dimension)) * random.uniform(0.1, 1)
    cameras = np.arange(len(identities)) % 2
    query, gallery_ = (
        Features(embeddings[rows].astype(np.float32), identities[rows], cameras[rows])
        for rows in (slice(0, queries), slice(queries, None))
    )
    return Problem(query, gallery_)


def final(problem: Problem, *chain: Any, block_bytes: int = 2**28) -> np.ndarray:
    return np.concatenate([block for _, block in Final.of(problem, chain, block_bytes).blocks()])


# k-reciprocal


def squared_distances(embeddings: np.ndarray, distance: str) -> np.ndarray:
    x = embeddings.astype(np.float64)
    if distance == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.array([((x - row) ** 2).sum(axis=1) for row in x])


def dense_k_reciprocal(embeddings: np.ndarray, distance: str, k1: int, k2: int) -> tuple[np.ndarray, np.ndarray]:
    """The (N, N) Jaccard and original distances of Zhong et al., as their code computes them, with loops."""
    original = squared_distances(embeddings, distance)
    original = original / original.max(axis=1, keepdims=True)
    ranking = np.argsort(original, axis=1, kind="stable")
    count = len(original)

    def reciprocal(i: int, k: int) -> set[int]:
        """The images among the k + 1 nearest of i (itself included) that have i among theirs."""
        return {int(j) for j in ranking[i, : k + 1] if i in ranking[j, : k + 1]}

    weights = np.zeros((count, count))
    for i in range(count):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            other = reciprocal(j, int(np.around(k1 / 2)))
            if len(other & own) > 2 / 3 * len(other):
                expanded |= other
        members = sorted(expanded)
        weights[i, members] = np.exp(-original[i, members])
        weights[i] /= weights[i].sum()
    weights = np.array([np.mean(weights[ranking[i, :k2]], axis=0) for i in range(count)])
    distances = np.empty((count, count))
    for i in range(count):
        for j in range(count):
            shared = np.minimum(weights[i], weights[j]).sum()
            distances[i, j] = 1 - shared / (2 - shared)
    return distances, original


SHAPES = [(seed, *shape) for seed in range(3) for shape in [(1, 1), (2, 5), (7, 14), (20, 60)]]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("k1, k2, weight", [(20, 6, 0.3), (5, 1, 0.0), (1, 3, 0.5), (6, 9, 0.9), (3, 2, 1.0)])
@pytest.mark.parametrize("seed, queries, gallery", SHAPES)
def test_re_ranking_equals_the_dense_algorithm(
    seed: int, queries: int, gallery: int, k1: int, k2: int, weight: float, distance: str
) -> None:
    problem = evolve(clustered(seed, queries, gallery, offset=3 * (seed % 2)), distance=distance)
    both = np.concatenate([problem.query.embeddings, problem.gallery.embeddings])
    distances, original = dense_k_reciprocal(both, distance, k1, k2)
    expected = (1 - weight) * distances + weight * original
    found = final(problem, ReRanking(k1, k2, weight))
    np.testing.assert_allclose(found, expected[:queries, queries:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(jaccard_dense(both, k1, k2, distance=distance), distances, rtol=0, atol=1e-5)


def jaccard_dense(given: Any, *args: Any, **more: Any) -> np.ndarray:
    """The distances of `jaccard` with ones where nothing is stored."""
    found = jaccard(given, *args, **more)
    dense = np.ones(found.shape)
    row = np.repeat(np.arange(len(dense)), np.diff(found.indptr))
    dense[row, found.indices] = found.data
    return dense


def test_images_are_their_own_nearest_even_among_copies() -> None:
    random = np.random.default_rng(0)
    images = np.repeat(random.normal(size=(8, 5)), 4, axis=0)[random.permutation(32)]
    found = nearest(as_points([features(images)], "euclidean"), 6, block_bytes=500)
    assert found.indices[:, 0].tolist() == [*range(32)]
    assert (found.squared[:, :4] == 0).all() and (found.squared[:, 4:] > 0).all()
    # the image itself, then its copies in their order
    for row, indices in enumerate(found.indices):
        copies = np.flatnonzero((images == images[row]).all(axis=1))
        assert indices[1:4].tolist() == [copy for copy in copies if copy != row]


@pytest.mark.parametrize("block_bytes", [1, 3000, 2**26])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(5))
def test_neighbours_equal_a_full_sort(seed: int, distance: str, block_bytes: int) -> None:
    problem = clustered(seed, 13, 50, offset=100 * seed)
    points = as_points([problem.query, problem.gallery], distance)
    both = np.concatenate([problem.query.embeddings, problem.gallery.embeddings])
    expected = squared_distances(both, distance)
    found = nearest(points, 9, block_bytes=block_bytes)
    order = np.argsort(expected, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(found.indices, order)
    units = points.scale**2
    largest = expected.max(axis=1)
    np.testing.assert_allclose(found.farthest * units, largest, rtol=1e-5)
    within = np.take_along_axis(expected, order, axis=1) / largest[:, None]
    np.testing.assert_allclose(found.squared * units / largest[:, None], within, atol=2e-6)
    apart = nearest_among(points, 13, 9, block_bytes=block_bytes)
    np.testing.assert_array_equal(apart.indices, np.argsort(expected[:13, 13:], axis=1, kind="stable")[:, :9])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_images_that_float32_cannot_tell_apart_are_compared_in_float64(distance: str) -> None:
    # Around each of 40 images stand others at distances that differ by less than the rounding of a product.
    random = np.random.default_rng(3)
    directions = np.linalg.qr(random.normal(size=(600, 600)))[0]
    embeddings = np.repeat(10 * directions[:40], 6, axis=0)
    embeddings += directions[40:280] * 10 * np.sqrt(1 + 1e-7 * np.tile(np.arange(6), 40))[:, None]
    images = features(embeddings[random.permutation(240)])
    points = as_points([images], distance)
    # what the points are after centring and rounding is what is compared
    expected = squared_distances(points.coordinates.numpy(), "euclidean").astype(np.float32)
    np.fill_diagonal(expected, -1)
    order = np.argsort(expected, axis=1, kind="stable")[:, :6]
    for block_bytes in (2000, 50_000, 2**26):
        np.testing.assert_array_equal(nearest(points, 6, block_bytes=block_bytes).indices, order)


def test_more_equally_near_images_than_are_kept_are_no_trouble() -> None:
    equal = np.ones((70, 4))
    for distance in ("cosine", "euclidean"):
        found = nearest(as_points([features(equal)], distance), 21, block_bytes=2000)
        assert found.indices[:, 0].tolist() == [*range(70)]
        assert (found.squared == 0).all()
        again = final(Problem(features(equal[:9]), features(equal[9:]), distance=distance), ReRanking())
        assert np.isfinite(again).all() and (again >= 0).all() and (again <= 1).all()


@pytest.mark.parametrize("chain", [[ReRanking(6, 3)], [Expansion(4, 3.0, True), ReRanking(6, 3)]], ids=["one", "both"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_blocks_and_threads_change_nothing(monkeypatch: Any, chain: list[Any], distance: str) -> None:
    problem = evolve(clustered(5, 60, 300, dimension=700), distance=distance)
    whole = final(problem, *chain)
    both = np.concatenate([problem.query.embeddings, problem.gallery.embeddings])
    graph = jaccard(both, 6, 3, distance=distance)
    threads = torch.get_num_threads()
    for block_bytes, cells, count in ((20_000, 1, 1), (200_000, 3000, 2), (2**26, 2**19, 3)):
        monkeypatch.setattr("reidcore.retrieval.neighbours.nearest.__kwdefaults__", {"block_bytes": block_bytes})
        monkeypatch.setattr("reidcore.retrieval.neighbours.nearest_among.__kwdefaults__", {"block_bytes": block_bytes})
        monkeypatch.setattr("reidcore.retrieval.reciprocal._CELLS", cells)
        monkeypatch.setattr("reidcore.retrieval.reciprocal._ROWS", 1 + block_bytes // 100)
        torch.set_num_threads(count)
        try:
            found = final(problem, *chain, block_bytes=block_bytes)
            again = jaccard(both, 6, 3, distance=distance)
        finally:
            torch.set_num_threads(threads)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(again.indices, graph.indices)
        np.testing.assert_array_equal(again.indptr, graph.indptr)
        np.testing.assert_allclose(again.data, graph.data, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e17])
def test_the_scale_of_embeddings_plays_no_role(scale: float) -> None:
    for distance in ("cosine", "euclidean"):
        problem = evolve(clustered(1, 10, 40), distance=distance)
        query, gallery = (
            evolve(side, embeddings=(side.embeddings * np.float64(scale)).astype(np.float32))
            for side in (problem.query, problem.gallery)
        )
        scaled = evolve(problem, query=query, gallery=gallery)
        np.testing.assert_allclose(final(scaled, ReRanking()), final(problem, ReRanking()), rtol=0, atol=1e-5)


def test_a_training_with_autocast_around_it_changes_nothing() -> None:
    problem = clustered(2, 20, 80, dimension=64)
    precision = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest(as_points([problem.gallery], "cosine"), 10)
    outside = nearest(as_points([problem.gallery], "cosine"), 10)
    np.testing.assert_array_equal(inside.indices, outside.indices)
    np.testing.assert_array_equal(inside.squared, outside.squared)
    assert torch.get_float32_matmul_precision() == precision


def test_embeddings_may_be_memory_mapped(tmp_path: Any) -> None:
    problem = clustered(3, 10, 40)
    mapped = []
    for name, side in (("query", problem.query), ("gallery", problem.gallery)):
        np.save(tmp_path / name, side.embeddings)
        mapped.append(evolve(side, embeddings=np.load(tmp_path / f"{name}.npy", mmap_mode="r")))
    for chain in ([ReRanking()], [Expansion(3, database=True)]):
        np.testing.assert_array_equal(final(Problem(*mapped), *chain), final(problem, *chain))
    np.testing.assert_array_equal(jaccard(mapped[1]).data, jaccard(problem.gallery).data)


# jaccard


def test_jaccard_stores_what_shares_a_neighbour_and_zeros_on_the_diagonal() -> None:
    # Two groups far apart: within one all are mutual neighbours, so all neighbourhoods are alike but for weights.
    images = np.array([[0, 1], [0.1, 1], [0.2, 1], [50, 1], [50.1, 1], [50.2, 1]])
    found = jaccard(images, 2, 1, distance="euclidean")
    assert found.format == "csr" and found.shape == (6, 6) and found.dtype == np.float32
    assert found.has_sorted_indices
    assert np.diff(found.indptr).tolist() == [3] * 6
    assert found.indices.reshape(6, 3).tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3
    assert found.data[found.indices == np.repeat(np.arange(6), 3)].tolist() == [0] * 6
    assert (found.data < 0.01).all()


def test_jaccard_takes_features_or_an_array_even_of_one_image() -> None:
    side = clustered(0, 5, 30).gallery
    np.testing.assert_array_equal(jaccard(side).data, jaccard(side.embeddings).data)
    one = jaccard([[1.0, 2.0]])
    assert (one.shape, one.nnz, one.data.tolist()) == ((1, 1), 1, [0.0])


REFUSED = {
    "k1": ({"k1": 0}, "k1 is 0; expected at least 1"),
    "k2": ({"k2": 0}, "k2 is 0; expected at least 1"),
    "distance": ({"distance": "cosin"}, "unknown distance 'cosin'; expected cosine or euclidean; did you mean"),
    "shape": ({"features": np.zeros(3)}, r"given embeddings have shape \(3,\); expected \(N, D\)"),
    "empty": ({"features": np.zeros((0, 3))}, "the given set is empty"),
    "nan": ({"features": [[1.0], [np.nan]]}, "row 1 is not finite"),
}


@pytest.mark.parametrize("changed, message", REFUSED.values(), ids=REFUSED)
def test_jaccard_refuses_what_makes_no_sense(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ReidError, match=message):
        jaccard(**{"features": np.eye(3), **changed})


# query expansion


def prepared(problem: Problem, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    found = Expansion(*args).prepare(problem).problem
    return found.query.embeddings, found.gallery.embeddings


def test_equation_7_by_hand() -> None:
    # The query at 0 has its two nearest at 1 and at -2: (0 + 1 - 2) / 3. The one at 10: (10 + 4 + 1) / 3.
    problem = Problem(features([[0], [10]]), features([[4], [1], [-2]]), distance="euclidean")
    query, gallery = prepared(problem, 2)
    assert query.ravel().tolist() == pytest.approx([-1 / 3, 5])
    assert gallery is problem.gallery.embeddings


def test_the_database_side_by_hand() -> None:
    # Gallery: 4 goes with 1, 1 and -2 with each other... both at 3 from 1; the first of equals, 4, is taken.
    problem = Problem(features([[0]]), features([[4], [1], [-2]]), distance="euclidean")
    query, gallery = prepared(problem, 1, 0.0, True)
    assert gallery.ravel().tolist() == pytest.approx([2.5, 2.5, -0.5])
    assert query.ravel().tolist() == [0.5]  # by the gallery as it was


def test_cosine_takes_means_of_normalised_embeddings() -> None:
    # (1, 0) and (0, 100) at right angles, with the same weight: their mean is between them.
    query, _ = prepared(Problem(features([[3, 0]]), features([[0, 100]])), 1)
    assert query.tolist() == [[0.5, 0.5]]


def test_alpha_weights_by_the_power_of_the_cosine() -> None:
    # cos 0.6, cubed: 0.216; at a negative cosine the weight is 0.
    problem = Problem(features([[1, 0]]), features([[-1, 0], [3, 4]]))
    query, _ = prepared(problem, 2, 3.0)
    np.testing.assert_allclose(query, [[(1 + 0.216 * 0.6) / 1.216, 0.216 * 0.8 / 1.216]], rtol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("k, alpha, database", [(1, 0.0, False), (5, 3.0, True), (4, 0.5, True), (100, 1.0, True)])
def test_expansion_equals_loops(distance: str, k: int, alpha: float, database: bool) -> None:
    problem = evolve(clustered(7, 12, 45), distance=distance)

    def ready(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x / np.linalg.norm(x) if distance == "cosine" else x

    def expanded(x: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
        near = sorted(others, key=lambda other: float(((ready(x) - ready(other)) ** 2).sum()))[:k]
        weights = [max(0.0, x @ other / np.linalg.norm(x) / np.linalg.norm(other)) ** alpha for other in near]
        total = ready(x) + sum(weight * ready(other) for weight, other in zip(weights, near, strict=True))
        return total / (1 + sum(weights))

    query, gallery = prepared(problem, k, alpha, database)
    images = [*problem.gallery.embeddings]
    np.testing.assert_allclose(query, [expanded(x, images) for x in problem.query.embeddings], rtol=1e-4, atol=1e-6)
    if database:
        alone = [expanded(x, images[:at] + images[at + 1 :]) for at, x in enumerate(images)]
        np.testing.assert_allclose(gallery, alone, rtol=1e-4, atol=1e-6)


# the chain


def test_expanded_features_are_what_is_re_ranked() -> None:
    problem = clustered(4, 20, 60)
    expansion = Expansion(3)
    changed = expansion.prepare(problem).problem
    np.testing.assert_array_equal(final(problem, expansion, ReRanking()), final(changed, ReRanking()))
    with pytest.raises(ContractError, match="the order is features, graph, rows"):
        rank(problem.query, problem.gallery, postprocess=["k-reciprocal", "query-expansion"])
    with pytest.raises(ContractError, match="at most one"):
        rank(problem.query, problem.gallery, postprocess=["k-reciprocal", "k-reciprocal"])


def test_evaluation_takes_them_by_name_with_options() -> None:
    problem = clustered(6, 60, 240, dimension=5)
    by_name, built = (
        evaluate(problem.query, problem.gallery, postprocess=chain)
        for chain in (
            [("query-expansion", {"k": 2, "alpha": 1}), ("k-reciprocal", {"k1": 6, "k2": 2, "weight": 0.2})],
            [Expansion(2, 1.0), ReRanking(6, 2, 0.2)],
        )
    )
    assert dict(by_name) == dict(built)
    plain = evaluate(problem.query, problem.gallery)
    again = evaluate(problem.query, problem.gallery, postprocess=["k-reciprocal"])
    assert again["mAP"] > plain["mAP"]
