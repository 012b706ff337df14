"""What a protocol compares: one problem, or several with what is drawn at random.

Q N D: queries, images, dimension of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from reidcore.retrieval.problem import Problem
from reidcore.retrieval.protocol import (
    ALL_CAMERAS,
    MULTI_QUERY,
    REPEATS,
    SINGLE_SHOT,
    VEHICLEID,
    distinct,
    image_numbers,
    multi_queries,
)
from reidcore.types import UNKNOWN, Features


@frozen(eq=False)
class Trial:
    """A ranking to be judged by each of the `judges`, problems that differ in what is junk only.

    identities: (N,) of all queries that any trial has; places: (Q,) where its own are among them.
    """

    judges: Sequence[Problem]
    identities: NDArray[np.int64]
    places: NDArray[np.int64]


def trials(problem: Problem, seed: int) -> Iterator[Trial]:
    """Yield what the problem's protocol compares."""
    if problem.protocol == VEHICLEID:
        yield from _vehicleid(problem, seed)
        return
    if problem.protocol == MULTI_QUERY:
        problem = evolve(problem, query=_joined(problem.query, problem.distance))
    judges = [problem]
    if problem.protocol == SINGLE_SHOT:
        judges = [evolve(problem, draw=(seed, repeat)) for repeat in range(REPEATS)]
    yield Trial(judges, problem.query.identities, np.arange(len(problem.query)))


def _joined(query: Features, distance: str) -> Features:
    """Return one query for the images of each joint one: the mean of their embeddings, of their directions if the
    distance looks at these only."""
    joint = multi_queries(query.identities, query.cameras, query.groups)
    embeddings = np.array(query.embeddings, dtype=np.float64)
    if distance == "cosine":
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    first = np.unique(joint, return_index=True)[1]
    sums = np.zeros((len(first), embeddings.shape[1]))
    np.add.at(sums, joint, embeddings)
    means = (sums / np.bincount(joint)[:, None]).astype(np.float32)
    paths = None if query.paths is None else [query.paths[number] for number in first]
    return Features(means, query.identities[first], query.cameras[first], paths)


def _vehicleid(problem: Problem, seed: int) -> Iterator[Trial]:
    """Draw one image of each known identity as the gallery; the others are the queries."""
    sides = problem.query, problem.gallery
    kept = distinct(image_numbers(*problem.image_names), *map(len, sides))
    embeddings, identities, cameras = (
        np.concatenate([getattr(side, name) for side in sides])[kept]
        for name in ("embeddings", "identities", "cameras")
    )
    shared = sides[0].extras.keys() & sides[1].extras.keys()
    extras = {name: np.concatenate([side.extras[name] for side in sides])[kept] for name in shared}
    paths = None
    if sides[0].paths is not None and sides[1].paths is not None:
        names = [*sides[0].paths, *sides[1].paths]
        paths = [names[number] for number in kept]
    images = Features(embeddings, identities, cameras, paths, extras=extras)
    for repeat in range(REPEATS):
        order = np.random.default_rng([seed, repeat]).permutation(len(images))
        known, first = np.unique(images.identities[order], return_index=True)
        gallery = np.sort(order[first[known != UNKNOWN]])
        queries = np.setdiff1d(np.arange(len(images)), gallery)
        part = evolve(problem, query=images.take(queries), gallery=images.take(gallery), protocol=ALL_CAMERAS)
        yield Trial([part], images.identities, queries)
