"""Clusterings against their dense forms, and what is said of them against pairs that are counted."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import DBSCAN, HDBSCAN

from reid_mlt.clustering import Clustering, _connected, agreement, changed, compact, quality
from reidcore.errors import RunError
from reidcore.retrieval import jaccard


def blobs(count, clusters, noise, seed=0, dimension=16):
    """Return normalised features around random directions, and which one each is of."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dimension))
    labels = np.arange(count) % clusters
    x = centres[labels] / np.linalg.norm(centres[labels], axis=1, keepdims=True)
    x = x + noise * random.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def dense(graph):
    """Return all Jaccard distances."""
    full, stored = np.ones(graph.shape), graph.tocoo()
    full[stored.row, stored.col] = stored.data
    np.fill_diagonal(full, 0)
    return full


@pytest.mark.parametrize(("method", "sizes"), [("kmeans", [6]), ("dbscan", [0.5]), ("hdbscan", [4])])
def test_clusters_that_lie_apart_are_found(method, sizes):
    x, true = blobs(90, 6, 0.05)
    (labels,) = Clustering(method, sizes, k1=10)(x, seed=3)
    assert labels.tolist() == true.tolist()  # numbered in the order of the images
    (again,) = Clustering(method, sizes, k1=10)(x, seed=3)
    assert (labels == again).all()


def test_every_size_is_a_granularity():
    x, _ = blobs(90, 6, 0.05)
    found = Clustering("kmeans", [3, 6, 12])(x, seed=0)
    assert [labels.max() + 1 for labels in found] == [3, 6, 12]


@pytest.mark.parametrize("seed", range(4))
def test_densities_on_the_sparse_graph_are_those_of_all_distances(seed):
    x, _ = blobs(80, 7, 0.2, seed)
    distances = dense(jaccard(x, 8, 3))
    assert (distances == 1).any()  # so that there is something that is not stored
    for radius in (0.3, 0.5, 0.7):
        (found,) = Clustering("dbscan", [radius], min_samples=3, k1=8, k2=3)(x, 0)
        expected = DBSCAN(eps=radius, min_samples=3, metric="precomputed").fit_predict(distances)
        assert found.tolist() == compact(expected).tolist()
    graph = jaccard(x, 8, 3)
    whole = _connected(graph, 3).toarray()
    assert (np.diff(_connected(graph, 3).indptr) >= 3).all()
    added = (whole != 0) & (graph.toarray() == 0) & ~np.eye(80, dtype=bool)
    assert (whole[added & (distances == 1)] == 1).all()
    stored = (graph.toarray() != 0) | np.eye(80, dtype=bool)
    np.testing.assert_allclose(whole[stored], np.maximum(distances, 1e-6)[stored], atol=1e-7)
    assert (whole == whole.T).all()
    # where all are connected by stored pairs there are no ties between them
    if connected_components(graph)[0] == 1:
        for smallest in (3, 6):
            (found,) = Clustering("hdbscan", [smallest], min_samples=3, k1=8, k2=3)(x, 0)
            part = HDBSCAN(min_cluster_size=smallest, min_samples=3, metric="precomputed", algorithm="brute", copy=True)
            assert found.tolist() == compact(part.fit_predict(np.maximum(distances, 1e-6))).tolist()


def test_images_that_share_no_neighbours_are_never_in_one_cluster():
    # identities of 12 and of 5 images, that alternate: only the larger ones can be clusters of 6
    sizes = np.tile([12, 5], 6)
    labels = np.repeat(np.arange(12), sizes)
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.normal(size=(64, 12)))[0].T
    x = centres[labels] + 0.02 * random.normal(size=(len(labels), 64))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    (found,) = Clustering("hdbscan", [6], k1=4, k2=3)(x, 0)
    for cluster in range(found.max() + 1):
        assert len(set(labels[found == cluster])) == 1
    assert set(labels[found >= 0]) <= set(range(0, 12, 2))


@pytest.mark.parametrize("method", ["dbscan", "hdbscan"])
def test_copies_of_images_and_images_alone_are_no_trouble(method):
    x, _ = blobs(40, 4, 0.05)
    alone = blobs(3, 3, 0.0, seed=9)[0]
    x = np.concatenate([x, np.repeat(x[:2], 8, axis=0), alone])
    size = 0.5 if method == "dbscan" else 4
    (labels,) = Clustering(method, [size], k1=8)(x, 0)
    assert labels.max() >= 1
    assert len(set(labels[40:48])) == 1


def test_more_clusters_than_images_are_refused():
    with pytest.raises(RunError, match=r"200 clusters of 90 images; lower task\.clusters"):
        Clustering("kmeans", [200])(blobs(90, 6, 0.05)[0], 0)


def test_clusters_are_numbered_without_gaps():
    assert compact(np.array([7, 7, -1, 2, 2, 5])).tolist() == [0, 0, -1, 1, 1, 2]
    assert compact(np.array([-1, -1])).tolist() == [-1, -1]


def test_other_names_of_clusters_are_no_change():
    before = np.array([0, 0, 1, 1, 2, 2, -1, -1])
    assert changed(before, np.array([2, 2, 0, 0, 1, 1, -1, -1])) == 0
    assert changed(before, np.array([0, 0, 0, 0, 1, 1, -1, -1])) == 2 / 8  # two of the four have another cluster
    assert changed(before, np.array([0, 0, 1, 1, 2, -1, -1, 3])) == 2 / 8
    assert changed(before, np.array([-1] * 8)) == 6 / 8


def pairs(labels):
    """Return the pairs of images that a grouping joins."""
    return {(i, j) for i, j in combinations(range(len(labels)), 2) if labels[i] == labels[j] >= 0}


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(-1, 3), min_size=n, max_size=n), min_size=1, max_size=3)
    )
)
def test_agreement_counts_pairs(groupings):
    joined = [pairs(labels) for labels in groupings]
    shares = [len(set.intersection(*joined)) / len(one) for one in joined if one]
    expected = sum(shares) / len(shares) if shares else 1.0
    assert agreement([np.array(labels) for labels in groupings]) == pytest.approx(expected)


def test_quality_by_hand():
    found = quality(np.array([0, 0, 0, 1, 1, -1, 1]), np.array([5, 5, 9, 9, 9, 5, -1]))
    assert found["purity"] == 4 / 5  # images without a cluster or an identity do not count
    assert quality(np.array([0, 0, 1, 1]), np.array([8, 8, 3, 3])) == {"ami": pytest.approx(1.0), "purity": 1.0}
    assert quality(np.array([0, 1]), np.array([-1, -1])) == {}
