"""Clusters of features, at several granularities, and how good they are.

N images, D embedding, G granularities. A clustering is (N,) int64 numbers 0..K-1, all of them taken, or `UNKNOWN` for
images that are in no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import RunError
from reidcore.retrieval import jaccard
from reidcore.types import UNKNOWN

if TYPE_CHECKING:
    import torch

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
    k1: int = 20
    k2: int = 6

    def __call__(self, x: NDArray[np.float32], seed: int, device: torch.device | str | None = None) -> list[Labels]:
        """Return the clustering of (N, D) normalised features by each size, the numbers in the order of the images.

        device: where neighbours are searched. Raises RunError when there are fewer images than clusters are wanted.
        """
        self.require(len(x))
        if self.method == "kmeans":
            found = [_kmeans(x, int(size), seed) for size in self.sizes]
        else:
            graph = jaccard(x, self.k1, self.k2, device=device)
            cluster = _dbscan if self.method == "dbscan" else _hdbscan
            found = cluster(graph, self.sizes, self.min_samples)
        return [compact(labels) for labels in found]

    def require(self, images: int) -> None:
        """Raise RunError when there are fewer images than clusters are wanted."""
        if self.method == "kmeans" and images < max(self.sizes):
            raise RunError(f"k-means was to make {max(self.sizes):g} clusters of {images} images; lower task.clusters")

    def empty(self, found: Sequence[Labels]) -> str:
        """Return what is to be said of clusters that were wanted and are empty, if anything is."""
        if self.method != "kmeans":
            return ""
        lacking = sum(int(size) - 1 - labels.max() for size, labels in zip(self.sizes, found, strict=True))
        return f"; {lacking} clusters were empty" if lacking else ""


def _kmeans(x: NDArray[np.float32], clusters: int, seed: int) -> Labels:
    import faiss

    # all images count, and none is said to be too few
    options = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    options |= {"niter": _ITERATIONS, "nredo": _TRIES, "seed": seed % 2**31}
    options["init_method"] = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    means = faiss.Kmeans(x.shape[1], clusters, **options)
    means.train(x)
    labels: Labels = means.index.search(x, 1)[1][:, 0]
    return labels


def _dbscan(graph: Any, radii: Sequence[float], min_samples: int) -> list[Labels]:
    """Return the clustering for each radius."""
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    ordered = sort_graph_by_row_values(graph, warn_when_not_sorted=False)
    return [DBSCAN(eps=radius, min_samples=min_samples, metric="precomputed").fit_predict(ordered) for radius in radii]


def _hdbscan(graph: Any, smallest: Sequence[float], min_samples: int) -> list[Labels]:
    """Return the clustering for each number of images that a cluster has at least."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import HDBSCAN

    # Images without a chain of shared neighbours between them are at the largest distance, where all merges are ties.
    _, parts = connected_components(graph, directed=False)
    whole = _connected(graph, min_samples)
    found = []
    for size in map(int, smallest):
        options = {"metric": "precomputed", "algorithm": "brute", "copy": True}
        labels = HDBSCAN(min_cluster_size=size, min_samples=min_samples, **options).fit_predict(whole)
        pieces = compact(np.where(labels < 0, UNKNOWN, labels * (parts.max() + 1) + parts))
        sizes = np.bincount(pieces[pieces >= 0], minlength=1)
        found.append(np.where((pieces >= 0) & (sizes[pieces] >= size), pieces, UNKNOWN))
    return found


def _connected(graph: Any, neighbours: int) -> Any:
    """Return the graph as HDBSCAN takes it: connected, and with so many neighbours of every image at least.

    Those that are added are at the largest distance, as are all pairs that are not stored.
    """
    from scipy.sparse import csr_array

    count = graph.shape[0]
    stored = graph.tocoo()
    steps = np.arange(1, min(neighbours, count - 1) + 1)
    here = np.repeat(np.arange(count), len(steps))
    there = (here + np.tile(steps, count)) % count
    rows, columns = np.concatenate([stored.row, here, there]), np.concatenate([stored.col, there, here])
    distances = np.full(len(rows), _FARTHEST)
    distances[: stored.nnz] = np.maximum(stored.data, _NEAREST)
    cells, first = np.unique(rows.astype(np.int64) * count + columns, return_index=True)  # what is stored comes first
    return csr_array((distances[first], (cells // count, cells % count)), shape=graph.shape)


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
