"""From features to figures, and from features to rank lists.

Q G: queries and gallery.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from reidcore.errors import ContractError, DataError, ReidError
from reidcore.retrieval import bootstrap
from reidcore.retrieval.distance import BLOCK_BYTES
from reidcore.retrieval.postprocess import Final, check_chain
from reidcore.retrieval.problem import Problem
from reidcore.retrieval.protocol import ALL_CAMERAS, CROSS_CAMERA, VERIFICATION
from reidcore.retrieval.ranking import in_threads
from reidcore.retrieval.trials import Trial, trials
from reidcore.retrieval.verification import PairMetric, start_pairs
from reidcore.types import Features

if TYPE_CHECKING:
    import torch

    from reidcore.catalog import Catalog


@frozen(eq=False)
class Result(Mapping[str, float]):
    """The figures of an evaluation, fractions of 1: `result["mAP"]`.

    queries, covered: how many queries there are, and how many of them have a match and so count;
    identities: (Q,) of the queries (of `multi-query` the joint ones, of `vehicleid` all images);
    per_query: what the figures were made of, `{name: (Q,) float64}`, NaN for a query without a match;
    intervals: `{figure: (low, high)}`, which hold it with a confidence of 95%, if they were asked for;
    spread: `{figure: standard deviation}` over the repeats of a protocol that draws at random, or over folds;
    resampled: `{figure: (R,)}` that the intervals are made of, by drawing `drawn` identities that have a match;
    curves: `{name: {name: array}}` for plots, see `reidcore.retrieval.roc.Curve.plots`; of repeats, the first one's;
    question: a hash of the protocol and all labels, equal for results that can be compared query by query;
    chosen: what post-processors chose on held-out identities, `{name: value}`.
    """

    _figures: Mapping[str, float]
    queries: int
    covered: int
    identities: NDArray[np.int64] = field(repr=False)
    per_query: Mapping[str, NDArray[np.float64]] = field(factory=dict, repr=False)
    intervals: Mapping[str, tuple[float, float]] = field(factory=dict)
    spread: Mapping[str, float] = field(factory=dict)
    resampled: Mapping[str, NDArray[np.float64]] = field(factory=dict, repr=False)
    drawn: int = 0
    curves: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(factory=dict, repr=False)
    question: str = field(default="", repr=False)
    chosen: Mapping[str, float] = field(factory=dict)

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
    intervals: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    catalog: Catalog | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Result:
    """Rank the gallery for every query and judge the rankings.

    distance: "cosine" or "euclidean"; postprocess, metrics: names of components, `(name, options)` pairs, or
    built parts; protocol: see `reidcore.retrieval.protocol`; "verification" compares each query with the gallery image
    of the same row, and has figures of its own; intervals: whether to compute them, by bootstrap over query identities;
    seed: of all that is drawn at random; device: where distances are computed, by default the CPU; catalog: where names
    are looked up, by default all that is installed; done: told how many queries are ranked, of each repeat anew.

    Raises DataError if no query has a match, ContractError for parts that do not fit, and ReidError for
    features that are unsound and for unknown names.
    """
    problem = Problem(query, gallery, protocol, distance, device)
    catalog = _catalog_for((*postprocess, *metrics), catalog)
    parts = [_part("metric", metric, "start", catalog) for metric in metrics]
    chain = chain_of(problem, postprocess, catalog)
    coverage = problem.coverage()
    if not coverage.covered:
        raise DataError(coverage.describe())
    if protocol == VERIFICATION:
        if chain:
            raise ContractError("verification compares pairs: there is no ranking to post-process")
        parts = [PairMetric()]
        judged = [(Trial([problem], problem.query.identities, np.arange(len(query))), [start_pairs(problem)])]
    else:
        judged = []
        for trial in trials(problem, seed):
            _check_extras(trial.judges[0], chain)
            judged += [(evolve(trial, judges=()), states) for states in _judge(trial, parts, chain, done)]
    figures = [_figures(states) for _, states in judged]
    resampled: dict[str, NDArray[np.float64]] = {}
    drawn = 0
    for number, part in enumerate(parts):
        if intervals and hasattr(part, "figures"):
            sums = reduce(operator.add, (states[number].sums for _, states in judged))
            resampled |= bootstrap.resample(sums, part.figures, seed)
            drawn = len(sums.identities)
    values = {name: np.array([each[name] for each in figures]) for name in figures[0]}
    trial, states = judged[0]
    spread = {name: float(np.std(each, ddof=1)) for name, each in values.items()} if len(judged) > 1 else {}
    return Result(
        {name: float(np.mean(each)) for name, each in values.items()},
        coverage.queries,
        coverage.covered,
        trial.identities,
        _per_query(judged),
        {name: bootstrap.interval(each, drawn) for name, each in resampled.items()},
        spread | {name: value for state in states for name, value in getattr(state, "spread", {}).items()},
        resampled,
        drawn,
        {name: curve for state in states for name, curve in getattr(state, "curves", {}).items()},
        _question(problem, seed),
    )


def _question(problem: Problem, seed: int) -> str:
    found = hashlib.sha256(f"{problem.protocol} {seed}".encode())
    for side in (problem.query, problem.gallery):
        found.update(np.stack([side.identities, side.cameras]).tobytes())
    return found.hexdigest()


def _judge(trial: Trial, parts: Sequence[Any], chain: Sequence[Any], done: Callable[[int], None]) -> list[list[Any]]:
    """Return the metrics' states of each of the trial's judges."""
    tallies = [[part.start(judge) for part in parts] for judge in trial.judges]
    final = Final.of(trial.judges[0], chain, BLOCK_BYTES)
    for rows, distances in final.blocks():
        for judge, states in zip(trial.judges, tallies, strict=True):
            block = judge.block(rows, distances, final.rounded)
            for state in states:
                state.update(block)
        done(rows.stop)
        del distances, block  # before there are others
    return tallies


def _figures(states: Sequence[Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for state in states:
        new = state.result()
        if twice := sorted(figures.keys() & new.keys()):
            raise ContractError(f"two metrics report {', '.join(twice)}; leave one out")
        figures.update(new)
    return figures


def _per_query(judged: Sequence[tuple[Trial, Sequence[Any]]]) -> dict[str, NDArray[np.float64]]:
    """Return each query's values, of several trials the mean of those that have one."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for trial, states in judged:
        for state in states:
            for name, values in state.per_query.items():
                placed = np.full(len(trial.identities), np.nan)
                placed[trial.places] = values
                found.setdefault(name, []).append(placed)
    means = {}
    for name, values in found.items():
        known = np.sum(~np.isnan(values), axis=0)
        means[name] = np.where(known > 0, np.nansum(values, axis=0) / np.maximum(known, 1), np.nan)
    return means


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
    chain = chain_of(problem, postprocess, catalog)
    k = min(k, len(gallery))
    indices = np.empty((len(query), k), dtype=np.int64)
    nearest = np.empty((len(query), k), dtype=np.float32)
    final = Final.of(problem, chain)

    def fill(first: int, distances: NDArray[np.float32], rounding: float, place: int) -> None:
        number, row = first + place, distances[place]
        last = np.partition(row, k - 1)[k - 1 :][:1]
        if final.rounded:
            last = final.rounded.around(np.array([number]), last, rounding)[1]
        candidates = np.flatnonzero(row <= last)
        exact = row[candidates]
        if final.rounded:
            exact = final.rounded.pairs(np.full(len(candidates), number), candidates)
        order = np.argsort(exact, kind="stable")[:k]
        indices[number], nearest[number] = candidates[order], exact[order]

    for rows, distances in final.blocks():
        rounding = 0.0
        if final.rounded:
            some = np.random.default_rng(0).integers(0, distances.shape, (512, 2))
            rounding = final.rounded.rounding(distances, rows.start, some[:, 0], some[:, 1])
        for _ in in_threads(partial(fill, rows.start, distances, rounding), range(len(distances))):
            pass
        del distances  # before there is another block
    return indices, nearest


def chain_of(problem: Problem, postprocess: Sequence[Any], catalog: Catalog | None) -> list[Any]:
    """Return the built parts of a chain (see `evaluate`). Raises ContractError if it cannot run on the problem."""
    catalog = _catalog_for(postprocess, catalog)
    chain = [_part("postprocessor", part, "prepare", catalog) for part in postprocess]
    _check_extras(problem, chain)
    return chain


def _check_extras(problem: Problem, chain: Sequence[Any]) -> None:
    check_chain(chain, problem.query.extras.keys() & problem.gallery.extras.keys(), problem.protocol)


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
