"""The chain of post-processors: features, then at most one graph, then rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore.errors import ContractError
from reidcore.retrieval.distance import BLOCK_BYTES, Distances
from reidcore.retrieval.problem import Problem
from reidcore.retrieval.protocol import CROSS_CAMERA, MULTI_QUERY
from reidcore.retrieval.ranking import check_distances

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reidcore.kinds import Postprocessor, Prepared

STAGES = ("features", "graph", "rows")


def check_chain(postprocessors: Sequence[Postprocessor], extras: Collection[str], protocol: str = CROSS_CAMERA) -> None:
    """Raise ContractError unless this chain can run, in this order, on features with these `extras`."""
    for part in postprocessors:
        if part.stage not in STAGES:
            raise ContractError(f"{_name(part)} is of stage '{part.stage}'; expected one of {', '.join(STAGES)}")
        if part.needs and protocol == MULTI_QUERY:
            raise ContractError(
                f"{_name(part)} needs the extras {', '.join(part.needs)}, which joint queries of the protocol "
                f"{protocol} do not have; choose another protocol"
            )
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


def chooses(postprocessors: Sequence[Postprocessor]) -> bool:
    """Return whether one of them has something to choose on held-out identities."""
    return any(hasattr(part, "choose") for part in postprocessors)


def choose(problem: Problem, postprocessors: Sequence[Postprocessor]) -> dict[str, float]:
    """Let a chain choose what its options leave open, on held-out identities; return what was chosen."""
    chosen: dict[str, float] = {}
    for position, part in enumerate(postprocessors):
        if hasattr(part, "choose"):
            before = Final.of(problem, postprocessors[:position])
            chosen |= part.choose(before.distances.problem, before.blocks())
    return chosen


@frozen(eq=False)
class Final:
    """The distances of a problem as its post-processors leave them.

    distances: those before the post-processors of stage graph and rows; parts: these, each with what it prepared.
    """

    distances: Distances
    parts: Sequence[tuple[Postprocessor, Prepared]]

    @classmethod
    def of(cls, problem: Problem, postprocessors: Sequence[Postprocessor], block_bytes: int = BLOCK_BYTES) -> Final:
        """Prepare a chain that has passed `check_chain`. Raises ContractError if it changes the number of images."""
        parts = []
        for part in postprocessors:
            prepared = part.prepare(problem)
            before, after = ((len(p.query), len(p.gallery)) for p in (problem, prepared.problem))
            if before != after:
                raise ContractError(f"{_name(part)} made {after} features (query, gallery) out of {before}")
            problem = prepared.problem
            if part.stage != "features":
                parts.append((part, prepared))
        # what is made of distances has no exact value to ask for later
        return cls(Distances(problem, exact=bool(parts), block_bytes=block_bytes), parts)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield blocks of rows and their (q, G) distances. Raises ContractError for a part that changes their shape,
        ReidError for one that makes NaN."""
        for rows, distances in self.distances.blocks():
            shape = tuple(distances.shape)
            for part, prepared in self.parts:
                distances = prepared.rows(rows, distances)
                if tuple(distances.shape) != shape:
                    raise ContractError(
                        f"{_name(part)} returned distances of shape {tuple(distances.shape)}; expected {shape}"
                    )
            found = distances.float().cpu().numpy()
            if self.parts:
                check_distances(rows, found)
            yield rows, found
            del distances, found  # before there is another block

    @property
    def rounded(self) -> Distances | None:
        """Where to ask for exact distances, if the blocks' are not."""
        return self.distances if self.distances.rounded else None


def _name(part: Postprocessor) -> str:
    return type(part).__name__
