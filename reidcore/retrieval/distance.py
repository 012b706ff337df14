"""Distances from blocks of queries to the whole gallery.

Dot products are taken in float64 and the distances handed out as float32. So they do not depend on the block
they fall into nor on the kernel that the linear algebra library picks for its shape, copies of an image tie,
and the precision setting of a training (TF32) does not reach them.

q G: queries of one block, and gallery; D: dimension of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from reidcore.retrieval.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 2**28

# Of a query and a gallery image: the float32 distance, a copy while it is put together or post-processed,
# masks and what they are made of, and what the caller still holds of the block before.
_PAIR_BYTES = 24
_FLOAT64_BYTES = 8


def cosine(dots: Tensor, query_norms: Tensor, gallery_norms: Tensor) -> Tensor:
    """1 - cos, in [0, 2]; an embedding of zeros is at distance 1 from everything.

    dots: (q, G) float64, overwritten; norms: (q,) and (G,); returns (q, G) float32.
    """
    tiny = np.finfo(np.float64).tiny
    cosines = dots.div_(query_norms.clamp_min(tiny)[:, None]).div_(gallery_norms.clamp_min(tiny))
    # Rounded before the subtraction: copies are then at distance 0, not at 1e-16 or -1e-16.
    return 1 - cosines.float()


def euclidean(dots: Tensor, query_norms: Tensor, gallery_norms: Tensor) -> Tensor:
    """The length of the difference (not its square).

    dots: (q, G) float64, overwritten; norms: (q,) and (G,); returns (q, G) float32.
    """
    scale = query_norms[:, None].square() + gallery_norms.square()
    squared = dots.mul_(-2).add_(scale)
    # Closer than float32 can tell two embeddings of this length apart, they are copies; what is left is
    # cancellation, and may be negative.
    resolution = float(np.finfo(np.float32).eps) ** 2
    return squared.masked_fill_(squared < resolution * scale, 0).sqrt_().float()


def distance_blocks(problem: Problem, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, Tensor]]:
    """Yield the queries' rows in order, with their (q, G) float32 distances on the problem's device.

    About `block_bytes` are used at a time, beside the embeddings.
    """
    import torch

    formula = {"cosine": cosine, "euclidean": euclidean}[problem.distance]
    query, gallery = (
        # torch wants writable memory, and a memory-mapped file is not
        torch.as_tensor(np.require(side.embeddings, np.float32, ["C", "W"]), device=problem.device or "cpu")
        for side in (problem.query, problem.gallery)
    )
    dimension = query.shape[1]
    height = max(1, block_bytes // (_PAIR_BYTES * len(gallery) + _FLOAT64_BYTES * dimension))
    width = max(1, block_bytes // 8 // (_FLOAT64_BYTES * (height + dimension)))
    pieces = [gallery[start : start + width] for start in range(0, len(gallery), width)]
    norms = [piece.double().norm(dim=1) for piece in pieces]
    for start in range(0, len(query), height):
        rows = slice(start, min(start + height, len(query)))
        block = query[rows].double()
        block_norms = block.norm(dim=1)
        distances = [
            formula(block @ piece.double().T, block_norms, piece_norms)
            for piece, piece_norms in zip(pieces, norms, strict=True)
        ]
        yield rows, torch.cat(distances, dim=1)
