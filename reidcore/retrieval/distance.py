"""Distances from blocks of queries to the whole gallery, and exact distances of single pairs.

The exact distance of a pair comes from a float64 dot product and is handed out as float32: copies of an image tie,
whatever the block or the kernel that the linear algebra library picks for its shape. A block of float64 products
takes twice as long as one of float32, so the blocks of large problems are float32, and say how far they may be from
the exact distances (`Distances.around`). Whoever ranks by them asks for the exact distances of the few pairs that are
too close to call.

Q G: queries and gallery; q: queries of one block; D: dimension of the embedding; n: some gallery images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from reidcore.retrieval.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 2**29
TILE = 2048
"""Queries and images that are multiplied at a time: what linear algebra libraries are fastest at."""

SMALL = 2**22
"""Pairs of queries and gallery images up to which nobody notices the time that float64 takes."""

_EPS = float(np.finfo(np.float32).eps)
_ROWS = 128  # of a tile, which stay in the cache from one operation to the next
_NUMBERS = 2**16  # of embeddings whose lengths are taken at a time
_PAIRS = 128  # compared at a time, so that they stay in the cache
_LONG = 1e15  # a length whose square is far from overflowing in float32, and its inverse from vanishing


def cosine(dots: Tensor, query_lengths: Tensor, gallery_lengths: Tensor) -> Tensor:
    """1 - cos, in [0, 2].

    dots: (q, G) float64, overwritten; lengths: (q,) and (G,); returns (q, G) float32.
    """
    dots.div_(query_lengths[:, None]).div_(gallery_lengths)
    # Rounded before the subtraction: copies are then at distance 0, not at 1e-16 or -1e-16.
    return 1 - dots.float()


def euclidean(dots: Tensor, query_lengths: Tensor, gallery_lengths: Tensor) -> Tensor:
    """The length of the difference (not its square).

    dots: (q, G) float64, overwritten; lengths: (q,) and (G,); returns (q, G) float32.
    """
    scale = query_lengths[:, None].square() + gallery_lengths.square()
    squared = dots.mul_(-2).add_(scale)
    # Closer than float32 can tell two embeddings of this length apart, they are copies; what is left is
    # cancellation, and may be negative.
    return squared.masked_fill_(squared < _EPS**2 * scale, 0).sqrt_().float()


FORMULAS = {"cosine": cosine, "euclidean": euclidean}


@frozen(eq=False)
class Distances:
    """The distances between the queries and the gallery of a problem.

    Blocks are exact where `exact` says so, where the problem is small (at most `SMALL` pairs), and for embeddings too
    long or short for float32 products; else they are of float32 precision.
    """

    problem: Problem
    exact: bool = False
    block_bytes: int = BLOCK_BYTES

    @cached_property
    def rounded(self) -> bool:
        """Whether blocks are of float32 precision only."""
        if self.exact or len(self.problem.query) * len(self.problem.gallery) <= SMALL:
            return False
        least = self.problem.shortest if self.problem.distance == "cosine" else self.problem.longest
        return 1 / _LONG < least <= self.problem.longest < _LONG

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the queries' rows in order, with their (q, G) float32 distances on the problem's device.

        About `block_bytes` are used at a time, beside the embeddings, if the caller keeps no block.
        """
        import torch

        query, gallery = self.problem.query.embeddings, self.problem.gallery.embeddings
        count, (total, dimension) = len(query), gallery.shape
        size = 4 if self.rounded else 8
        most = max(1, self.block_bytes * 3 // 4 // (4 * total + 2 * size * dimension))
        height = -(-count // -(-count // most))  # of equal blocks
        side = max(1, min(TILE, self.block_bytes // 8 // (size * (dimension + TILE))))
        pieces = [slice(start, min(start + side, total)) for start in range(0, total, side)]
        on_cpu = self._device.type == "cpu"
        kept = [] if on_cpu else [self._load(gallery, piece) for piece in pieces]
        for start in range(0, count, height):
            rows = slice(start, min(start + height, count))
            block = self._load(query, rows)
            lengths = _lengths(block).to(block.dtype)
            if self.rounded and self.problem.distance == "cosine":
                block = block / lengths[:, None]  # exact products are divided afterwards, and once
            # numpy's memory comes in huge pages, which saves most of the time that fresh memory takes
            distances = (
                torch.from_numpy(np.empty((len(block), total), np.float32))
                if on_cpu
                else torch.empty(len(block), total, device=self._device)
            )
            dots = torch.empty(side, side, dtype=block.dtype, device=self._device)
            for number, piece in enumerate(pieces):
                images = self._load(gallery, piece) if on_cpu else kept[number]
                for part in (slice(first, first + side) for first in range(0, len(block), side)):
                    self._fill(distances[part, piece], dots, block[part], images, lengths[part], piece)
            yield rows, distances
            del distances  # before there is another one

    def _fill(self, into: Tensor, dots: Tensor, block: Tensor, images: Tensor, lengths: Tensor, piece: slice) -> None:
        """Write the distances of some queries to a piece of the gallery; `dots` is memory for the product."""
        import torch

        dots = dots.view(-1)[: into.numel()].view(into.shape)
        with full_precision(self._device.type):
            torch.mm(block, images.T, out=dots)
        if not self.rounded:
            into.copy_(FORMULAS[self.problem.distance](dots, lengths, self._gallery_lengths[piece]))
            return
        one = torch.ones((), device=self._device)
        for few in (slice(start, start + _ROWS) for start in range(0, len(block), _ROWS)):
            if self.problem.distance == "cosine":
                torch.addcmul(one, dots[few], self._inverse_lengths[piece], value=-1, out=into[few])
            else:
                squares = lengths[few, None].square() + self._gallery_lengths[piece].square()
                torch.sqrt(dots[few].mul_(-2).add_(squares).clamp_min_(0), out=into[few])

    def pairs(self, queries: NDArray[Any], images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the exact distance of each query to the gallery image in the same place, by numbers, all (n,)."""
        import torch

        formula = FORMULAS[self.problem.distance]
        found = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), _PAIRS):
            some = slice(start, start + _PAIRS)
            x = np.asarray(self.problem.query.embeddings[queries[some]], dtype=np.float64)
            y = np.asarray(self.problem.gallery.embeddings[images[some]], dtype=np.float64)
            dots, squares, others = (torch.from_numpy(np.einsum("nd,nd->n", *of)) for of in ((x, y), (x, x), (y, y)))
            found[some] = formula(dots[:, None], squares.sqrt_(), others.sqrt_()[:, None])[:, 0].numpy()
        return found

    def exact_rows(self, queries: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield blocks of the exact distances, of some queries, with their place among these."""
        some = evolve(self.problem, query=self.problem.query.take(queries))
        only = Distances(some, True, self.block_bytes)
        for rows, distances in only.blocks():
            yield rows, distances.cpu().numpy()

    def rounding(self, block: NDArray[np.float32], start: int, rows: NDArray[Any], images: NDArray[Any]) -> float:
        """Return how far distances of a block may be off, in units of `around`: twice what some of its pairs are.

        block: (q, G) of the queries from number `start` on; rows, images: (n,) the pairs to look at.
        A sum of D products is usually off by sqrt(D) / 6 roundings of its largest part; at least sqrt(D) / 2 + 8 are
        returned.
        """
        dimension = self.problem.gallery.embeddings.shape[1]
        truth = self.pairs(start + rows, images).astype(np.float64)
        found = block[rows, images].astype(np.float64)
        if self.problem.distance == "cosine":
            errors = np.abs(found - truth)
        else:
            errors = np.abs(found**2 - truth**2) / np.maximum(self._scale(start + rows), np.finfo(np.float64).tiny)
        return max(float(np.sqrt(dimension) / 2 + 8) * _EPS / 2, 2 * float(errors.max(initial=0)))

    def around(
        self, queries: NDArray[Any], distances: NDArray[np.float32], rounding: float
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the range around each distance that rounding may have hidden ties in, of its query's number, all (n,).

        Two distances of a block further apart than this are in their exact order, if either is off by at most
        `rounding`: of the cosine, or of the squares of the lengths that an euclidean distance is made of.
        """
        if self.problem.distance == "cosine":
            return distances - np.float32(2 * rounding), distances + np.float32(2 * rounding)
        margin = 2 * rounding * self._scale(queries)
        squares = np.square(distances, dtype=np.float64)
        return np.sqrt(np.maximum(squares - margin, 0)), np.sqrt(squares + margin)

    def _scale(self, queries: NDArray[Any]) -> NDArray[np.float64]:
        """Return the largest squares that a query's euclidean distances are differences of, (n,)."""
        found: NDArray[np.float64] = self._query_lengths[queries] ** 2 + float(self._gallery_lengths.max()) ** 2
        return found

    @property
    def _type(self) -> Any:
        import torch

        return torch.float32 if self.rounded else torch.float64

    @cached_property
    def _device(self) -> Any:
        import torch

        return torch.device(self.problem.device or "cpu")

    @cached_property
    def _centre(self) -> Any:
        """What float32 subtracts before products, as distances stay the same: or a common offset takes the digits."""
        gallery = self.problem.gallery.embeddings
        if not self.rounded or self.problem.distance == "cosine":
            return np.float32(0)
        return np.mean(gallery[:: max(1, len(gallery) // 1000)], axis=0, dtype=np.float64).astype(np.float32)

    @cached_property
    def _gallery_lengths(self) -> Tensor:
        """(G,) on the device, of what `_load` returns."""
        return self._all_lengths(self.problem.gallery.embeddings).to(self._type)

    @cached_property
    def _inverse_lengths(self) -> Tensor:
        """(G,) float32, on the device."""
        return self._all_lengths(self.problem.gallery.embeddings).reciprocal().float()

    @cached_property
    def _query_lengths(self) -> NDArray[np.float64]:
        return self._all_lengths(self.problem.query.embeddings).cpu().numpy()

    def _all_lengths(self, embeddings: Any) -> Tensor:
        import torch

        step = max(1, self.block_bytes // 64 // embeddings.shape[1])
        parts = [slice(start, start + step) for start in range(0, len(embeddings), step)]
        return torch.cat([_lengths(self._load(embeddings, part)) for part in parts])

    def _load(self, embeddings: Any, rows: slice) -> Tensor:
        """Return some embeddings on the device, in the type of the products."""
        import torch

        # torch wants writable memory, and a memory-mapped file is not
        some = np.require(embeddings[rows], np.float32, ["C", "W"])
        loaded = torch.as_tensor(some, device=self._device)
        if self.rounded:
            return loaded - torch.as_tensor(self._centre, device=self._device) if np.ndim(self._centre) else loaded
        return loaded.double()


def _lengths(embeddings: Tensor) -> Tensor:
    """Return the float64 lengths of (n, D) embeddings, which in float32 would be off by more than products are."""
    import torch

    few = torch.split(embeddings, max(1, _NUMBERS // embeddings.shape[1]))  # whose float64 copies stay in the cache
    return torch.cat([torch.linalg.vector_norm(some, dim=1, dtype=torch.float64) for some in few])


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Multiply float32 as float32, whatever a training around it allows (TF32, bfloat16, autocast)."""
    import torch

    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # which refuses to speak for who has set the backends one by one
        of: Any = torch.backends
        backends = [of.cuda.matmul, of.mkldnn.matmul]
        set_by_backend = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            with torch.autocast(device, enabled=False):
                yield
        finally:
            for backend, precision in zip(backends, set_by_backend, strict=True):
                backend.fp32_precision = precision
        return
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
