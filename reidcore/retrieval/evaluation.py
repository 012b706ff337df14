"""From features to figures, and from features to rank lists.

Q G: queries and gallery.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from reidcore.errors import ContractError, DataError, ReidError
from reidcore.retrieval.postprocess import check_chain, final_distances
from reidcore.retrieval.problem import Problem
from reidcore.retrieval.protocol import ALL_CAMERAS, CROSS_CAMERA
from reidcore.retrieval.ranking import RankingBlock, check_distances
from reidcore.types import Features

if TYPE_CHECKING:
    import torch

    from reidcore.catalog import Catalog


@frozen(eq=False)
class Result(Mapping[str, float]):
    """The figures of an evaluation, fractions of 1: `result["mAP"]`.

    per_query: what the figures were made of, `{name: (Q,) float64}`, NaN for a query without a match;
    queries, covered: how many queries there are, and how many of them have a match and so count.
    """

    _figures: Mapping[str, float]
    per_query: Mapping[str, NDArray[np.float64]] = field(repr=False)
    queries: int
    covered: int

    def __getitem__(self, name: str) -> float:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)


def evaluate(
    query: Features,
    gallery: Features,
    *,
    distance: str = "cosine",
    postprocess: Sequence[Any] = (),
    metrics: Sequence[Any] = ("cmc", "map", "minp"),
    protocol: str = CROSS_CAMERA,
    device: torch.device | str | None = None,
    catalog: Catalog | None = None,
) -> Result:
    """Rank the gallery for every query and judge the rankings.

    distance: "cosine" or "euclidean"; postprocess, metrics: names of components, `(name, options)` pairs, or
    built parts; protocol: see `Problem`; device: where distances are computed (in float64), by default the
    CPU; catalog: where names are looked up, by default all that is installed.

    Raises DataError if no query has a match, ContractError for parts that do not fit, and ReidError for
    features that are unsound and for unknown names.
    """
    problem = Problem(query, gallery, protocol, distance, device)
    catalog = _catalog_for((*postprocess, *metrics), catalog)
    chain = _chain(problem, postprocess, catalog)
    states = [_part("metric", metric, "start", catalog).start(problem) for metric in metrics]
    coverage = problem.coverage()
    if not coverage.covered:
        raise DataError(coverage.describe())
    for rows, distances in final_distances(problem, chain):
        block = RankingBlock(rows, distances, *problem.masks(rows))
        for state in states:
            state.update(block)
    figures: dict[str, float] = {}
    per_query: dict[str, NDArray[np.float64]] = {}
    for state in states:
        new = state.result()
        if twice := sorted(figures.keys() & new.keys()):
            raise ContractError(f"two metrics report {', '.join(twice)}; leave one out")
        figures.update(new)
        per_query.update(state.per_query)
    return Result(figures, per_query, coverage.queries, coverage.covered)


def rank(
    query: Features,
    gallery: Features,
    k: int = 10,
    *,
    distance: str = "cosine",
    postprocess: Sequence[Any] = (),
    device: torch.device | str | None = None,
    catalog: Catalog | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` nearest gallery images of every query, nearest first, and their distances: both (Q, k).

    Of images that are equally near, the one that stands first in the gallery comes first. Labels play no
    role: no junk is removed. A `k` beyond the size of the gallery means all of it. The other arguments and
    the errors are those of `evaluate`.
    """
    if k < 1:
        raise ReidError(f"k is {k}; expected at least 1")
    problem = Problem(query, gallery, ALL_CAMERAS, distance, device)
    chain = _chain(problem, postprocess, _catalog_for(postprocess, catalog))
    k = min(k, len(gallery))
    indices = np.empty((len(query), k), dtype=np.int64)
    nearest = np.empty((len(query), k), dtype=np.float32)
    for rows, distances in final_distances(problem, chain):
        check_distances(rows, distances)
        for number, row in enumerate(distances, start=rows.start):
            candidates = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])
            indices[number] = candidates[np.argsort(row[candidates], kind="stable")[:k]]
            nearest[number] = row[indices[number]]
    return indices, nearest


def _chain(problem: Problem, postprocess: Sequence[Any], catalog: Catalog | None) -> list[Any]:
    chain = [_part("postprocessor", part, "prepare", catalog) for part in postprocess]
    check_chain(chain, problem.query.extras.keys() & problem.gallery.extras.keys())
    return chain


def _catalog_for(parts: Sequence[Any], catalog: Catalog | None) -> Catalog | None:
    """Return the catalog if one is given, that of all that is installed if a part is named, else None."""
    if catalog is None and any(isinstance(part, (str, tuple)) for part in parts):
        from reidcore.catalog import discover

        return discover()
    return catalog


def _part(kind: str, part: Any, method: str, catalog: Any) -> Any:
    """Return the built part that `part` is, or that it names with or without options."""
    match part:
        case str():
            return catalog.build(kind, part, {})
        case (str() as name, Mapping() as options):
            return catalog.build(kind, name, options)
        case _ if callable(getattr(part, method, None)):
            return part
    raise ContractError(f"found {part!r}; expected the name of a {kind}, (name, options), or a built {kind}")
