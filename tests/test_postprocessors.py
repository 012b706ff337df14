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
from reidcore.retrieval.postprocess import final_distances


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
    return np.concatenate([block for _, block in final_distances(problem, chain, block_bytes)])


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


SHAPES = [(seed, *shape) for seed in range(4) for shape in [(1, 1), (2, 5), (7, 14), (15, 40), (30, 90)]]


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
