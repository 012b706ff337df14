"""Exact nearest neighbours among many images, without the matrix of all their distances.

A float32 product of blocks finds the candidates. Those that it cannot tell apart are compared once more in
float64, so neighbours do not depend on the size of the blocks, the number of threads or the kernel.

N: images; M: images that neighbours are looked for among; D: dimension of the embedding; n m: rows and columns
of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from reidcore.retrieval.distance import full_precision
from reidcore.types import Features

BLOCK_BYTES = 2**27

# What is done image by image or pair by pair takes this many numbers at a time: they stay in the cache, and torch
# uses a single thread. On a busy machine it would wait for the others longer than the work takes.
_NUMBERS = 2**14

_SAMPLE = 256  # images whose mean is the centre

# Of a pair of a block: the float32 distance, its transpose, whether it is near enough, and what is near enough.
_PAIR_BYTES = 16

# Candidates beyond the k nearest, for the comparison in float64. If more than these are as near as the k-th,
# to within the rounding of float32, which of them are chosen is left to that rounding.
_SPARE = 11

# The largest error of a float32 product is far below this times the squared lengths of both points.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)


@frozen(eq=False)
class Points:
    """Images as points, centred, the farthest at length 1.

    coordinates: (N, D) float32; scale: what distances between them have to be multiplied with.

    For the distance "cosine" they are the normalised embeddings, for "euclidean" the embeddings as they are.
    A shift and a factor change no order; centred and short, little is lost where |x|^2 + |y|^2 - 2xy cancels.
    """

    coordinates: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.coordinates)

    def squared(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the (n,) float32 squared distances of pairs, both (n,) positions, from differences in float64."""
        x = self.coordinates
        squared = torch.empty(len(first), device=x.device)
        step = max(1, _NUMBERS // x.shape[1])
        for start in range(0, len(first), step):
            pairs = slice(start, start + step)
            # not x[first]: with threads that is many times slower
            differences = x.index_select(0, first[pairs]).double().sub_(x.index_select(0, second[pairs]))
            squared[pairs] = differences.square_().sum(1)
        return squared


def as_points(sides: Sequence[Features], distance: str, device: torch.device | str | None = None) -> Points:
    """Return the images of all `sides`, one side after the other, as points on `device`."""
    count, dimension = sum(map(len, sides)), np.shape(sides[0].embeddings)[1]
    points = torch.empty(count, dimension, device=device or "cpu")

    def read(side: Features, rows: slice) -> Tensor:
        """Return the embeddings of `rows`, normalised for "cosine", in float64."""
        found = torch.from_numpy(np.array(side.embeddings[rows], np.float32)).to(points.device, torch.float64)
        if distance == "cosine":
            found /= found.norm(dim=1, keepdim=True).clamp_min(np.finfo(np.float64).tiny)
        return found

    # About the middle, which is all that a centre has to be.
    centre = torch.cat([read(side, slice(0, None, count // _SAMPLE + 1)) for side in sides]).mean(0)
    at, step = 0, max(1, _NUMBERS // dimension)
    for side in sides:
        for start in range(0, len(side), step):
            rows = read(side, slice(start, start + step))
            points[at : at + len(rows)] = rows.sub_(centre)
            at += len(rows)
    scale = float(_lengths(points).max()) or 1.0
    return Points(points.div_(scale), scale)


def _lengths(points: Tensor) -> Tensor:
    """Return the (N,) float64 lengths of (N, D) points."""
    # Filled in, not joined: small results that outlive large temporaries leave holes in memory.
    lengths = torch.empty(len(points), dtype=torch.float64, device=points.device)
    for rows in _pieces(slice(0, len(points)), max(1, _NUMBERS // points.shape[1])):
        lengths[rows] = torch.linalg.vector_norm(points[rows], dim=1, dtype=torch.float64)
    return lengths


@frozen(eq=False)
class Neighbours:
    """The k nearest images of each of N images, nearest first; of equally near ones that with the lowest number.

    Where more than `_SPARE` images beyond the k are as near as the k-th, rounding decides which of them are taken.

    indices: (N, k) int64; squared: (N, k) float32 squared distances, in units of the points; farthest: (N,)
    float32, the largest squared distance to any image.
    """

    indices: NDArray[np.int64]
    squared: NDArray[np.float32]
    farthest: NDArray[np.float32]


def nearest(points: Points, k: int, *, block_bytes: int = BLOCK_BYTES) -> Neighbours:
    """Return the `k` nearest of all points for each: itself first, at distance 0, whatever copies it has.

    A `k` beyond the number of points means all. Blocks take about `block_bytes`. The matrix is symmetric: each
    of its blocks is computed once and read twice, by rows and by columns.
    """
    return _search(points, slice(0, len(points)), slice(0, len(points)), k, block_bytes)


def nearest_among(points: Points, queries: int, k: int, *, block_bytes: int = BLOCK_BYTES) -> Neighbours:
    """Return the `k` nearest of the other points, counted from 0, for each of the first `queries` points."""
    return _search(points, slice(0, queries), slice(queries, len(points)), k, block_bytes)


@torch.no_grad()
def _search(points: Points, rows: slice, columns: slice, k: int, block_bytes: int) -> Neighbours:
    """Return the `k` nearest of `columns` for each of `rows`: both all of the points, or apart."""
    x = points.coordinates
    lengths = _lengths(x).square_().float()
    symmetric = rows == columns
    candidates = min(k + _SPARE, columns.stop - columns.start)
    best = _Best(rows, candidates, x.device)
    height = max(1, int((block_bytes / _PAIR_BYTES) ** 0.5))
    with full_precision(x.device.type):
        for above in _pieces(rows, height):
            for beside in _pieces(slice(above.start, columns.stop) if symmetric else columns, height):
                block = torch.addmm(lengths[beside], x[above], x[beside].T, alpha=-2).add_(lengths[above, None])
                if above == beside:
                    block.fill_diagonal_(-torch.inf)
                best.take(above, beside, block)
                if symmetric and above != beside:
                    best.take(beside, above, block.T.contiguous())
    return best.decide(points, lengths, columns.start, min(k, candidates))


class _Best:
    """The candidates of each row so far."""

    def __init__(self, rows: slice, candidates: int, device: torch.device) -> None:
        count = rows.stop - rows.start
        self.squared = torch.full((count, candidates), torch.inf, device=device)
        self.indices = torch.zeros((count, candidates), dtype=torch.int64, device=device)
        self.farthest = torch.zeros(count, device=device)

    def take(self, rows: slice, columns: slice, block: Tensor) -> None:
        """Take in a block: (n, m) squared distances of the points in `rows` to those in `columns`."""
        self.farthest[rows] = torch.maximum(self.farthest[rows], block.amax(1))
        squared, indices = self._promising(rows, block)
        squared = torch.cat([self.squared[rows], squared], dim=1)
        indices = torch.cat([self.indices[rows], indices + columns.start], dim=1)
        self.squared[rows], order = squared.topk(self.squared.shape[1], dim=1, largest=False)
        self.indices[rows] = indices.gather(1, order)

    def _promising(self, rows: slice, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return what of `block` may be among the best of its rows, (n, few): squared distances and columns."""
        worst = self.squared[rows, -1:]
        if worst.isinf().any():
            found = block.topk(min(self.squared.shape[1], block.shape[1]), dim=1, largest=False)
            return found.values, found.indices
        # After some blocks hardly anything is better than what is there.
        row, column = (block < worst).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(block))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        squared = block.new_full((len(block), int(counts.max())), torch.inf)
        indices = torch.zeros_like(squared, dtype=torch.int64)
        squared[row, place] = block[row, column]
        indices[row, place] = column
        return squared, indices

    def decide(self, points: Points, lengths: Tensor, start: int, k: int) -> Neighbours:
        """Return the `k` best, with those compared in float64 that float32 cannot tell apart."""
        squared, indices = self.squared, self.indices  # ascending
        error = _ROUNDING * (lengths[: len(squared), None] + lengths[indices])
        # A candidate that is surely farther than all before it begins a group; in a group of several all are unsure.
        reach = (squared + error).cummax(dim=1).values
        begins = torch.ones_like(squared, dtype=torch.bool)
        begins[:, 1:] = (squared - error)[:, 1:] > reach[:, :-1]
        unsure = ~begins
        unsure[:, :-1] |= ~begins[:, 1:]
        row, column = unsure.nonzero(as_tuple=True)
        if len(row):
            squared[row, column] = points.squared(row, indices[row, column])
        indices, order = indices.sort(dim=1)
        squared, order = squared.gather(1, order).sort(dim=1, stable=True)
        indices = indices.gather(1, order) - start
        return Neighbours(
            indices[:, :k].cpu().numpy(), squared[:, :k].clamp_min(0).cpu().numpy(), self.farthest.cpu().numpy()
        )


def _pieces(of: slice, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, of.stop)) for start in range(of.start, of.stop, size))
