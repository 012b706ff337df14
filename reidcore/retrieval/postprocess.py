"""The chain of post-processors: features, then at most one graph, then rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from reidcore.errors import ContractError
from reidcore.retrieval.distance import BLOCK_BYTES, distance_blocks
from reidcore.retrieval.problem import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reidcore.kinds import Postprocessor

STAGES = ("features", "graph", "rows")


def check_chain(postprocessors: Sequence[Postprocessor], extras: Collection[str]) -> None:
    """Raise ContractError unless this chain can run, in this order, on features with these `extras`."""
    for part in postprocessors:
        if part.stage not in STAGES:
            raise ContractError(f"{_name(part)} is of stage '{part.stage}'; expected one of {', '.join(STAGES)}")
        if missing := sorted(set(part.needs) - set(extras)):
            offered = ", ".join(sorted(extras)) or "none"
            raise ContractError(
                f"{_name(part)} needs the extras {', '.join(missing)}, which the features do not have "
                f"(they have: {offered})"
            )
    for before, after in pairwise(postprocessors):
        if STAGES.index(before.stage) > STAGES.index(after.stage):
            raise ContractError(
                f"{_name(after)} (stage {after.stage}) comes after {_name(before)} (stage {before.stage}); "
                f"the order is {', '.join(STAGES)}"
            )
    graphs = [_name(part) for part in postprocessors if part.stage == "graph"]
    if len(graphs) > 1:
        raise ContractError(f"{' and '.join(graphs)} are both of stage graph; at most one can be used")


def final_distances(
    problem: Problem,
    postprocessors: Sequence[Postprocessor],
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield blocks of rows and their (q, G) distances as the post-processors leave them.

    The chain must have passed `check_chain`. Raises ContractError for a part that changes the number of
    images.
    """
    chain = []
    for part in postprocessors:
        prepared = part.prepare(problem)
        before, after = ((len(p.query), len(p.gallery)) for p in (problem, prepared.problem))
        if before != after:
            raise ContractError(f"{_name(part)} made {after} features (query, gallery) out of {before}")
        problem = prepared.problem
        chain.append((part, prepared))
    for rows, distances in distance_blocks(problem, block_bytes):
        shape = tuple(distances.shape)
        for part, prepared in chain:
            distances = prepared.rows(rows, distances)
            if tuple(distances.shape) != shape:
                raise ContractError(
                    f"{_name(part)} returned distances of shape {tuple(distances.shape)}; expected {shape}"
                )
        yield rows, distances.float().cpu().numpy()


def _name(part: Postprocessor) -> str:
    return type(part).__name__
