"""The post-processor: a query's nearest images compared again, cell by cell.

Q G: queries and gallery; q: queries of one block; k: images that a query is compared with; C: channels; N, M: cells of
a query's image and of a gallery image; i: gallery images that are worked on at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from reidcore.errors import ContractError
from reidcore.retrieval import Problem
from reidcore.retrieval.distance import full_precision

Match = Literal["reconstruction", "best"]

BLENDS = np.linspace(0, 1, 101)
"""Among these `Choosing` chooses."""

QUERY_BYTES = 2**28
"""Of queries' cells in float32 that are held at a time."""

_ITEMS = 8  # gallery images whose cells are one factor of a product
_ROWS = 2048  # of a product that stay in the cache while they are summed up
_NUMBERS = 2**20  # of distances that are searched at a time
_MULTIPLE = 16  # to which a product's columns are filled up: linear algebra libraries are slow between them
_CLOSE = 1e-3  # of a cell's square: where less is left, rounding shows, and what is left is computed by itself


@frozen(eq=False)
class Rescoring:
    """Deep spatial reconstruction (He et al. 2018; FastReID, section 5.1): the distance between two sets of cells.

    Cells are compared by their directions, as if they had length 1; one of zeros is nothing, and nothing is left of it.
    With match = "reconstruction" each cell x of the query, (C,), is reconstructed from those of the gallery image, the
    columns of Y, (C, M): r = min over z of |x - Y z|^2 + ridge |z|^2 gives z, and |x - Y z| is what is left of the
    cell. The distance is the sum of these, each times the weight of the query's cell (`weights`). With "best" it is 1 -
    the mean over the query's cells of the largest cosine with one of the gallery's.

    That is done for the k images that are nearest by the given distance d. They get (1 - blend) d + blend times the
    cells' distance; all others as if nothing of the query were in them, so that they stay behind these. (In the
    reference system the others have the distance 100.)

    Raises ContractError for options out of range.
    """

    match: Match = "reconstruction"
    k: int = 100
    blend: float = 0.5
    ridge: float = 1e-3
    stage: Literal["rows"] = "rows"

    def __attrs_post_init__(self) -> None:
        if not (self.k >= 1 and 0 <= self.blend <= 1 and self.ridge > 0):
            raise ContractError(
                f"dsr: found k = {self.k}, blend = {self.blend}, ridge = {self.ridge}; expected k of at least 1, "
                "blend from 0 to 1, and ridge above 0"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The extras `cells`, (N, C), and for a reconstruction `weights`, (N,), which sum to 1."""
        return ("cells", "weights") if self.match == "reconstruction" else ("cells",)

    def prepare(self, problem: Problem) -> Rescored:
        """Nothing is computed yet. Raises ContractError for extras of other shapes."""
        query, gallery = (side.extras["cells"].shape for side in (problem.query, problem.gallery))
        if len(query) != 3 or len(gallery) != 3 or query[2] != gallery[2]:
            raise ContractError(f"dsr: cells have shapes {query} and {gallery}; expected (Q, N, C) and (G, M, C)")
        if self.match == "reconstruction" and (weights := problem.query.extras["weights"].shape) != query[:2]:
            raise ContractError(f"dsr: the queries' weights have shape {weights}; expected {query[:2]}, one a cell")
        return Rescored(problem, self)


class Choosing:
    """A `Rescoring` whose blend is the one of `BLENDS` with the best mAP on held-out identities."""

    stage: Literal["rows"] = "rows"

    def __init__(self, rescoring: Rescoring) -> None:
        self.rescoring, self.needs = rescoring, rescoring.needs
        self.chosen = False

    def choose(self, problem: Problem, blocks: Iterable[tuple[slice, NDArray[np.float32]]]) -> dict[str, float]:
        """Compare all blends on a problem of held-out identities, whose distances come in `blocks`."""
        rescored = self.rescoring.prepare(problem)
        sums = np.zeros(len(BLENDS))
        for rows, block in blocks:
            distances = torch.from_numpy(block).to(problem.device or "cpu")
            found = rescored.nearest(rows, distances)
            for number, blend in enumerate(BLENDS):
                mixed = rescored.mix(distances, *found, float(blend)).cpu().numpy()
                for ranks in problem.block(rows, mixed).ranks:
                    if len(ranks):
                        sums[number] += np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1))
        blend = float(BLENDS[np.argmax(sums)])
        self.rescoring, self.chosen = evolve(self.rescoring, blend=blend), True
        return {"dsr blend": blend}

    def prepare(self, problem: Problem) -> Rescored:
        """Prepare the chosen one. Raises ContractError when nothing was chosen."""
        if not self.chosen:
            raise ContractError(
                "dsr: blend is to be chosen on training identities that evaluation.holdout keeps out of a recipe's "
                "training, and there are none here; write a number"
            )
        return self.rescoring.prepare(problem)


@frozen(eq=False)
class Rescored:
    """A problem, and how its cells are compared."""

    problem: Problem
    options: Rescoring

    def rows(self, rows: slice, distances: Tensor) -> Tensor:
        """(q, G) distances of the queries in `rows` -> (q, G) that replace them, on the same device."""
        return self.mix(distances, *self.nearest(rows, distances), self.options.blend)

    def mix(self, distances: Tensor, nearest: Tensor, found: Tensor, blend: float) -> Tensor:
        """Blend (q, G) distances and those of the cells, (q, k), of the nearest images; see `Rescoring`."""
        farthest = 1 if self.options.match == "reconstruction" else 2
        mixed = distances * (1 - blend)
        ours = mixed.gather(1, nearest) + blend * found
        return mixed.add_(blend * farthest).scatter_(1, nearest, ours)

    def nearest(self, rows: slice, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k nearest images of the queries in `rows`, and the distances of their cells: (q, k) both."""
        nearest = _nearest(distances, self.options.k)
        with full_precision(self._device.type):
            dense = 2 * nearest.shape[1] >= distances.shape[1]  # then a few pairs too many cost less than choosing
            return nearest, (self._dense if dense else self._sparse)(rows, nearest)

    def _dense(self, rows: slice, nearest: Tensor) -> Tensor:
        """Compare all pairs of queries and gallery, and return the wanted ones."""
        total = len(self.problem.gallery)
        found = torch.empty(len(nearest), total, device=self._device)
        for part in _slices(len(nearest), self._most):
            query = self._query(rows.start + np.arange(part.start, part.stop))
            for items in _slices(total, _ITEMS):
                found[part, items] = self._compare(query, self._gallery(items))
        return found.gather(1, nearest)

    def _sparse(self, rows: slice, nearest: Tensor) -> Tensor:
        """Compare each gallery image with the queries that it is near to."""
        found = torch.empty(nearest.shape, device=self._device)
        items, places = nearest.flatten().sort(stable=True)
        items, counts = items.unique_consecutive(return_counts=True)
        for item, wanted in zip(items.tolist(), places.split(counts.tolist()), strict=True):
            gallery = self._gallery(slice(item, item + 1))
            for some in wanted.split(self._most):
                query = self._query(rows.start + (some // nearest.shape[1]).cpu().numpy())
                found.view(-1)[some] = self._compare(query, gallery)[:, 0]
        return found

    def _compare(self, query: _Query, gallery: _Gallery) -> Tensor:
        """Return the (n, i) distances of n queries' cells from those of i gallery images."""
        found = torch.empty(len(query.cells), gallery.count, device=self._device)
        for rows in _slices(len(found), _ROWS):
            products = (query.cells[rows] @ gallery.factors).unflatten(1, (gallery.count, -1))
            if self.options.match == "best":
                found[rows] = products.amax(2)
            else:
                torch.linalg.vector_norm(products, dim=2, out=found[rows])
        found.mul_(query.scales[:, None])
        if self.options.match == "best":
            return 1 - found.unflatten(0, (query.count, -1)).mean(1)
        left = found.square_().neg_().add_((query.scales > 0).float()[:, None])
        close = (left < _CLOSE) & (query.scales > 0)[:, None]
        for item in close.any(0).nonzero()[:, 0].tolist():
            for some in close[:, item].nonzero()[:, 0].split(_ROWS):
                left[some, item] = gallery.left(item, query.cells[some] * query.scales[some, None])
        left = left.clamp_(min=0).sqrt_().unflatten(0, (query.count, -1))
        return (query.weights[:, :, None] * left).sum(1)

    def _query(self, numbers: NDArray[np.int64]) -> _Query:
        """Load the cells of some queries."""
        cells = self._load(self.problem.query.extras["cells"][numbers]).float().flatten(0, 1)
        weights = cells.new_empty(0)
        if self.options.match == "reconstruction":
            weights = self._load(self.problem.query.extras["weights"][numbers]).float()
        return _Query(len(numbers), cells, _inverse_lengths(cells), weights)

    def _gallery(self, items: slice) -> _Gallery:
        """Load the cells of some gallery images, and compute what those of queries are multiplied with.

        K = Y^T X are the products of the image's cells with a query's, and A = (Y^T Y + ridge)^-1. What is left of
        the query's cells is |x|^2 - K^T (A + ridge A^2) K, and A + ridge A^2 = A (Y^T Y + 2 ridge) A. With S S^T = Y^T
        Y + 2 ridge the last term is the square of (Y A S)^T x: one product a pair. Y A S has singular values below 1.
        """
        cells = self._load(self.problem.gallery.extras["cells"][items]).double()  # (i, M, C)
        cells *= _inverse_lengths(cells)[:, :, None]
        count, filled = len(cells), -(-cells.shape[1] // _MULTIPLE) * _MULTIPLE
        if self.options.match == "best":
            again = [*range(cells.shape[1]), *[0] * (filled - cells.shape[1])]
            return _Gallery(count, cells[:, again].float().flatten(0, 1).T)
        gram = cells @ cells.mT
        ridge = self.options.ridge * torch.eye(cells.shape[1], dtype=gram.dtype, device=gram.device)
        factor, other = torch.linalg.cholesky(gram + ridge), torch.linalg.cholesky(gram + 2 * ridge)
        mixing = F.pad(torch.cholesky_solve(other, factor), (0, filled - cells.shape[1]))
        factors = (mixing.mT @ cells).float().flatten(0, 1).T
        return _Gallery(count, factors, cells, factor)

    def _load(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(array, requirements="W")).to(self._device)

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(self.problem.device or "cpu")

    @cached_property
    def _most(self) -> int:
        """Queries that are loaded at a time."""
        _, count, channels = self.problem.query.extras["cells"].shape
        return max(1, QUERY_BYTES // (4 * count * channels))


@frozen(eq=False)
class _Query:
    """Cells of n queries, (nN, C) float32, 1 over their lengths, (nN,), 0 where that is 0, and the (n, N) weights."""

    count: int
    cells: Tensor
    scales: Tensor
    weights: Tensor


@frozen(eq=False)
class _Gallery:
    """The (C, iM) numbers that queries' cells are multiplied with; the (i, M, C) float64 cells that they are made of,
    and the (i, M, M) Cholesky factor of their regularised products."""

    count: int
    factors: Tensor
    cells: Tensor | None = None
    factor: Tensor | None = None
    _bases: dict[int, Tensor] = field(factory=dict, init=False)

    def left(self, item: int, x: Tensor) -> Tensor:
        """Return the squares of what image `item` leaves of (r, C) cells: (r,), without cancellation.

        With the Cholesky factor L, what is left of x is x - W^T W x, where W = L^-1 Y^T has singular values below 1:
        nothing is larger than x on the way, however small the ridge.
        """
        assert self.cells is not None and self.factor is not None
        if item not in self._bases:
            solved = torch.linalg.solve_triangular(self.factor[item], self.cells[item], upper=False)
            self._bases[item] = solved.float()
        basis = self._bases[item]
        return (x - x @ basis.T @ basis).square().sum(1)


def _nearest(distances: Tensor, k: int) -> Tensor:
    """Return the k nearest images of each query, (q, k), or all; of those that are equally near the first ones."""
    count, total = distances.shape
    if k >= total:
        return torch.arange(total, device=distances.device).expand(count, total)
    parts = []
    for few in distances.split(max(1, _NUMBERS // total)):
        last = few.kthvalue(k, 1, keepdim=True).values
        nearer, ties = few < last, few == last
        ties &= ties.cumsum(1, dtype=torch.int32) <= k - nearer.sum(1, keepdim=True)
        parts.append((nearer | ties).nonzero()[:, 1].view(-1, k))
    return torch.cat(parts)


def _inverse_lengths(cells: Tensor) -> Tensor:
    """Return 1 over the lengths of (..., C) cells, (...), 0 for zeros. Raises ContractError for other than numbers."""
    lengths = torch.linalg.vector_norm(cells, dim=-1)
    if not bool(lengths.isfinite().all()):
        raise ContractError("dsr: some cells are not finite; look at what the model makes of these images")
    return torch.where(lengths > 0, 1 / lengths, 0)


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
