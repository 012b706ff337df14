"""Re-ranking by k-reciprocal encoding (Zhong et al., CVPR 2017).

Q G N: queries, gallery and both together; q: queries of one block.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from reidcore.retrieval import Problem
from reidcore.retrieval.neighbours import as_points
from reidcore.retrieval.reciprocal import encode, over, shared_weights, similarity


@frozen(eq=False)
class ReRanking:
    """k-reciprocal re-ranking: (1 - weight) times the Jaccard distance + weight times the original one (equation 12).

    The original distance is squared and each row is divided by its largest value over queries and gallery together,
    as in the authors' code: for "cosine" the squared euclidean distance of normalised embeddings, 2 (1 - cos), for
    "euclidean" that of the embeddings as they are. k1, k2 and weight are 20, 6 and 0.3 there too.

    The reference system has k1 neighbours with the image itself, not beside it; takes the exponentials of squared
    distances that are not divided; and mixes in the distance as the ranking has it, neither squared nor divided.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    stage: Literal["graph"] = "graph"
    needs: tuple[str, ...] = ()

    def prepare(self, problem: Problem) -> ReRanked:
        """Find all neighbourhoods. Memory: the embeddings once more, a block, and what is sparse."""
        points = as_points((problem.query, problem.gallery), problem.distance, problem.device)
        encoded, farthest = encode(points, self.k1, self.k2)
        queries = len(problem.query)
        # back to the units of the distances that `rows` is given: a length, or 1 - cos
        scale = over(farthest[:queries]).astype(float) ** 0.5 * points.scale
        return ReRanked(
            problem,
            encoded[:queries],
            encoded[queries:].tocsc(),
            scale if problem.distance == "euclidean" else scale**2 / 2,
            self.weight,
        )


@frozen(eq=False)
class ReRanked:
    """A problem with the neighbourhoods of queries, (Q, N), and gallery, (G, N), and the (Q,) largest distances."""

    problem: Problem
    queries: Any
    gallery: Any
    largest: NDArray[Any]
    weight: float

    def rows(self, rows: slice, distances: Tensor) -> Tensor:
        """(q, G) distances of the queries in `rows` -> (q, G) re-ranked ones, on the same device."""
        largest = torch.from_numpy(self.largest[rows]).to(distances.device, torch.float32)
        result = distances / largest[:, None]
        if self.problem.distance == "euclidean":
            result.square_()
        result.mul_(self.weight).add_(1 - self.weight)  # of images that share nothing
        for part, cells, shared in shared_weights(self.queries[rows], self.gallery):
            places, nearer = (torch.from_numpy(of).to(result.device) for of in (cells, similarity(shared)))
            result[part].view(-1).index_add_(0, places, nearer.float(), alpha=self.weight - 1)
        return result
