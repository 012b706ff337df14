"""k-reciprocal encoding: who shares whose neighbourhood, held sparse.

Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. The equations are theirs.

N: images; K: neighbours of an image; q M: rows of one block, and images that they are compared with.
Sparse matrices are scipy's `csr_array`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reidcore.errors import ReidError
from reidcore.retrieval.problem import DISTANCES, as_arrays, check_values
from reidcore.retrieval.protocol import check_name
from reidcore.types import Features

if TYPE_CHECKING:
    import torch

    from reidcore.retrieval.neighbours import Neighbours, Points

_ROWS = 4096  # images whose sets are expanded at a time
_CELLS = 2**19  # cells of a block, and weights that are added up in it: few enough for the cache


def jaccard(
    features: Any,
    k1: int = 20,
    k2: int = 6,
    *,
    distance: str = "cosine",
    device: torch.device | str | None = None,
) -> Any:
    """Return the Jaccard distances (equation 10) of the neighbourhoods of all images, (N, N) float32, sparse.

    An entry that is not stored is a distance of 1: the two share no neighbour. The diagonal is stored, as zeros.
    That is what scikit-learn takes for clustering, with a radius below 1:

        graph = sort_graph_by_row_values(jaccard(features), warn_when_not_sorted=False)   # sklearn.neighbors
        labels = DBSCAN(eps=0.5, min_samples=4, metric="precomputed").fit_predict(graph)

    features: `Features`, or an (N, D) array; k1: neighbours of an image, apart from itself; k2: nearest images,
    itself included, whose neighbourhoods are averaged (1: none is); distance: "cosine" or "euclidean", what is near;
    device: where neighbours are searched, by default the CPU.

    Raises ReidError for features that are empty, not finite or of a wrong shape, an unknown distance and a k below 1.
    """
    from scipy.sparse import csr_array

    from reidcore.retrieval.neighbours import as_points

    if not isinstance(features, Features):
        labels = np.zeros(np.shape(features)[:1], np.int64)
        features = Features(features, labels, labels)
    check_name("distance", distance, DISTANCES)
    features = as_arrays(features, "given")
    check_values(features.embeddings, "given", features.paths, zeros=distance != "cosine")
    encoded, _ = encode(as_points([features], distance, device), k1, k2)
    lists = encoded.tocsc()
    data, indices, counts = [], [], [0]
    for rows, cells, shared in shared_weights(encoded, lists):
        row, column = np.divmod(cells, len(features))
        shared[row + rows.start == column] = 1  # but for rounding
        data.append((1 - similarity(shared)).astype(np.float32))
        indices.append(column.astype(np.int32))
        counts.extend(np.bincount(row, minlength=rows.stop - rows.start))
    entries = (np.concatenate(data), np.concatenate(indices), np.cumsum(counts))
    return csr_array(entries, shape=(len(features), len(features)))


def encode(points: Points, k1: int, k2: int) -> tuple[Any, NDArray[np.float32]]:
    """Return all neighbourhoods, (N, N) sparse, and each image's largest squared distance, (N,) in units of the points.

    A row is equation 7, averaged over the k2 nearest images (equation 11), with sum 1. The distances in it are
    squared, each over its row's largest. Raises ReidError for a k below 1.
    """
    from scipy.sparse import csr_array, vstack

    from reidcore.retrieval.neighbours import nearest

    for name, k in (("k1", k1), ("k2", k2)):
        if k < 1:
            raise ReidError(f"{name} is {k}; expected at least 1")
    # Twice as many as are looked at: most of the images that sets are expanded by are then known with their distances.
    found = nearest(points, max(2 * k1 + 1, k2))
    count, known = found.indices.shape

    def lists(length: int) -> Any:
        """Return the (N, N) matrix with a 1 for each of the `length` nearest images, itself included."""
        length = min(length, known)
        columns = np.sort(found.indices[:, :length], axis=1).astype(np.int32).ravel()
        starts = np.arange(0, count * length + 1, length)
        return csr_array((np.ones(len(columns), np.float32), columns, starts), shape=(count, count))

    near, nearer = lists(k1 + 1), lists(round(k1 / 2) + 1)
    reciprocal, half = near.multiply(near.T).tocsr(), nearer.multiply(nearer.T).tocsr()  # equation 3
    weights = []
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        weights.append(_weights(points, found, rows, _expanded(reciprocal[rows], half)))
    encoded = vstack(weights, format="csr")
    if k2 > 1:
        closest = lists(k2)
        encoded = (closest @ encoded) / min(k2, known)
    return encoded, found.farthest


def _expanded(sets: Any, half: Any) -> Any:
    """Return `sets`, the (q, N) neighbours of some images, with the (N, N) `half` sets of those that mostly agree.

    Equation 4: a neighbour's half set is added when more than 2/3 of it are in the image's own set.
    """
    common = (sets @ half).multiply(sets).tocsr()  # half is symmetric; each neighbour has itself in common
    sizes = np.diff(half.indptr)
    common.data = (3 * common.data > 2 * sizes[common.indices]).astype(np.float32)
    common.eliminate_zeros()
    expanded = (sets + common @ half).tocsr()
    expanded.sort_indices()
    return expanded


def _weights(points: Points, found: Neighbours, rows: slice, sets: Any) -> Any:
    """Return the (q, N) `sets` of the images in `rows` with weights: equation 7, each row's sum 1."""
    import torch

    count = len(points)
    row = np.repeat(np.arange(rows.start, rows.stop), np.diff(sets.indptr))
    wanted = row * count + sets.indices  # ascending, since the indices of a row are
    listed = (np.arange(rows.start, rows.stop)[:, None] * count + found.indices[rows]).ravel()
    order = listed.argsort()
    place = order[np.searchsorted(listed[order], wanted).clip(max=len(order) - 1)]
    squared = found.squared[rows].ravel()[place].astype(np.float64)
    missing = np.flatnonzero(listed[place] != wanted)
    if len(missing):
        device = points.coordinates.device
        pairs = (torch.from_numpy(side[missing].astype(np.int64)).to(device) for side in (row, sets.indices))
        squared[missing] = points.squared(*pairs).cpu().numpy()
    weights = np.exp(-squared / over(found.farthest)[row])
    sets.data = weights / np.add.reduceat(weights, sets.indptr[:-1]).repeat(np.diff(sets.indptr))
    return sets


def over(farthest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N,) what to divide by: 1 where all images are at distance 0."""
    return np.where(farthest > 0, farthest, np.float32(1))


def shared_weights(encoded: Any, lists: Any) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield blocks of rows of `encoded`, and what their images share with others: sums of minima of weights, up to 1.

    encoded: (Q, N) sparse by rows; lists: (M, N) sparse by columns, the inverted lists: for each image, those of M
    that have it in their neighbourhood. Most images share nothing: of the (q, M) sums of a block, those that are not
    0, (n,), are yielded after their places in it, (n,) ascending.
    """
    others = lists.shape[0]
    lengths = np.diff(lists.indptr)[encoded.indices]
    upto = np.concatenate([[0], lengths.cumsum()])[encoded.indptr]  # pairs before each row
    cost = upto + np.arange(len(upto)) * others
    start = 0
    while start < encoded.shape[0]:
        stop = max(start + 1, int(np.searchsorted(cost, cost[start] + _CELLS, side="right")) - 1)
        part = slice(encoded.indptr[start], encoded.indptr[stop])
        length = lengths[part]
        ends = length.cumsum()
        at = np.arange(length.sum()) + np.repeat(lists.indptr[encoded.indices[part]] - (ends - length), length)
        row = np.repeat(np.arange(stop - start), np.diff(encoded.indptr[start : stop + 1]))
        minima = np.minimum(np.repeat(encoded.data[part], length), lists.data[at])
        cells = np.repeat(row * others, length) + lists.indices[at]
        sums = np.bincount(cells, minima, (stop - start) * others)
        places = np.flatnonzero(sums)
        yield slice(start, stop), places, np.minimum(sums[places], 1)  # more is rounding
        start = stop


def similarity(shared: Any) -> Any:
    """Return shared / (2 - shared), 1 - the Jaccard distance (equation 10), for neighbourhoods whose sum is 1."""
    return shared / (2 - shared)
