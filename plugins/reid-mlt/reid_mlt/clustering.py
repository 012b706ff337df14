"""Clusters of features, at several granularities, and how good they are.

N images, D embedding, G granularities. A clustering is (N,) int64 numbers 0..K-1, all of them taken, or `UNKNOWN` for
images that are in no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import RunError
from reidcore.retrieval import jaccard
from reidcore.types import UNKNOWN

Method = Literal["kmeans", "dbscan", "hdbscan"]
Labels = NDArray[np.int64]

_ITERATIONS, _TRIES = 50, 4
_FARTHEST = 1.0  # the Jaccard distance of images that share no neighbour
_NEAREST = 1e-6  # in graphs whose edges vanish at 0


@frozen
class Clustering:
    """A method, and a size for each granularity.

    sizes: for "kmeans" numbers of clusters, for "dbscan" radii, for "hdbscan" the smallest clusters. The densities are
    those of the k-reciprocal Jaccard distance with k1 and k2; a core has `min_samples` images within the radius, itself
    included.
    """

    method: Method
    sizes: Sequence[float]
    min_samples: int = 4
    k1: int = 30
    k2: int = 6

    def __call__(self, x: NDArray[np.float32], seed: int) -> list[Labels]:
        """Return the clustering of (N, D) normalised features by each size, the numbers in the order of the images.

        Raises RunError when there are fewer images than clusters are wanted.
        """
        if self.method == "kmeans":
            return [compact(_kmeans(x, int(size), seed)) for size in self.sizes]
        graph = jaccard(x, self.k1, self.k2)
        cluster = _dbscan if self.method == "dbscan" else _hdbscan
        return [compact(cluster(graph, size, self.min_samples)) for size in self.sizes]


def _kmeans(x: NDArray[np.float32], clusters: int, seed: int) -> Labels:
    import faiss

    if len(x) < clusters:
        raise RunError(f"k-means was to make {clusters} clusters of {len(x)} images; lower task.clusters")
    # all images count, and none is said to be too few
    options = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    options |= {"niter": _ITERATIONS, "nredo": _TRIES, "seed": seed % 2**31}
    options["init_method"] = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    means = faiss.Kmeans(x.shape[1], clusters, **options)
    means.train(x)
    labels: Labels = means.index.search(x, 1)[1][:, 0]
    return labels


def _dbscan(graph: Any, radius: float, min_samples: int) -> Labels:
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    found = DBSCAN(eps=radius, min_samples=min_samples, metric="precomputed")
    labels: Labels = found.fit_predict(sort_graph_by_row_values(graph, copy=True, warn_when_not_sorted=False))
    return labels


def _hdbscan(graph: Any, smallest: float, min_samples: int) -> Labels:
    from scipy.sparse import csr_array, eye_array
    from sklearn.cluster import HDBSCAN

    count = graph.shape[0]
    # scikit-learn wants a connected graph in which nobody has too few neighbours. Neighbours at the largest distance,
    # which all pairs have that are not stored, make it one and change nothing.
    offsets = [offset for step in range(1, min(min_samples, count - 1) + 1) for offset in (step, -step)]
    ring = csr_array((count, count), dtype=np.float32)
    for offset in offsets:
        ring += eye_array(count, k=offset, format="csr", dtype=np.float32)
        ring += eye_array(count, k=offset - np.sign(offset) * count, format="csr", dtype=np.float32)
    stored = graph.copy()
    stored.data = np.maximum(graph.data, _NEAREST)
    known = stored.copy()
    known.data = np.ones_like(known.data)
    missing = ring.sign() - ring.sign().multiply(known)
    whole = csr_array(stored + _FARTHEST * missing)
    whole.eliminate_zeros()
    found = HDBSCAN(
        min_cluster_size=int(smallest), min_samples=min_samples, metric="precomputed", algorithm="brute", copy=True
    )
    labels: Labels = found.fit_predict(whole.astype(np.float64))
    return labels


def compact(labels: NDArray[Any]) -> Labels:
    """Return the clusters numbered anew, in the order of their first images, without gaps; outliers are `UNKNOWN`."""
    known = labels >= 0
    _, first, inverse = np.unique(labels[known], return_index=True, return_inverse=True)
    renumbered = np.full(len(labels), UNKNOWN, np.int64)
    renumbered[known] = np.argsort(np.argsort(first))[inverse]
    return renumbered


def changed(before: Labels, after: Labels) -> float:
    """Return the share of images whose cluster is another one, when the clusters are matched as well as they can be.

    An image that was an outlier, or becomes one, has changed.
    """
    from scipy.optimize import linear_sum_assignment

    both = (before >= 0) & (after >= 0)
    table = _table(before[both], after[both]).toarray() if both.any() else np.zeros((0, 0))
    same = table[linear_sum_assignment(table, maximize=True)].sum() + np.sum((before < 0) & (after < 0))
    return float(1 - same / len(before))


def agreement(groupings: Sequence[Labels]) -> float:
    """Return how many of the pairs of images that a grouping joins are joined by all: the mean over the groupings.

    Outliers are joined with nobody; where nobody is joined it is 1.
    """
    known = np.all([labels >= 0 for labels in groupings], axis=0)
    _, cells = np.unique(np.stack([labels[known] for labels in groupings]), axis=1, return_inverse=True)
    by_all = _joined(cells)
    shares = [by_all / pairs for labels in groupings if (pairs := _joined(labels[labels >= 0]))]
    return float(np.mean(shares)) if shares else 1.0


def _joined(labels: Labels) -> int:
    sizes = np.bincount(labels)
    return int((sizes * (sizes - 1) // 2).sum())


def quality(labels: Labels, identities: NDArray[Any]) -> dict[str, float]:
    """Return how well clusters meet identities: adjusted mutual information and purity of what is in a cluster.

    Images of unknown identity do not count. Nothing is returned where no image has both.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    both = (labels >= 0) & (identities >= 0)
    if not both.any():
        return {}
    found, true = labels[both], identities[both]
    purity = _table(found, np.unique(true, return_inverse=True)[1]).max(axis=1).toarray().sum() / len(found)
    return {"ami": float(adjusted_mutual_info_score(true, found)), "purity": float(purity)}


def _table(rows: Labels, columns: Labels) -> Any:
    """Return how many images have each pair of numbers, sparse."""
    from scipy.sparse import coo_array

    return coo_array((np.ones(len(rows), np.int64), (rows, columns))).tocsr()
