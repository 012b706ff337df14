"""Tests of a model as what a page shows of them: figures, rank lists, confusions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.assemble import Evaluator, Test
from reidcore.model import Model
from reidcore.report.pictures import Pictures
from reidcore.retrieval.evaluation import Result
from reidcore.retrieval.lists import HardPairs, Rankings, RankList
from reidcore.types import Features, Sample

FIRST = 10
"""Images of a rank list that are shown."""

MISSED = 5
"""Matches that come later, and are shown with their places."""

_CONFUSIONS = 40


@frozen(eq=False)
class Opened:
    """A finished run, opened to be looked at; holdout: what its post-processors choose on, if they do."""

    evaluator: Evaluator
    model: Model
    tests: Sequence[Test]
    holdout: Test | None = None

    def features(self, tests: Sequence[Test]) -> Iterator[tuple[Test, Features, Features, Mapping[str, float]]]:
        """Yield some of its tests as `Evaluator.features` does."""
        return self.evaluator.features(self.model, tests, self.holdout)


def figures(result: Result) -> list[dict[str, Any]]:
    """Return the figures of a result, with their intervals and deviations."""
    found = []
    for name, value in result.items():
        low, high = result.intervals.get(name, (float("nan"),) * 2)
        one: dict[str, Any] = {"name": name, "value": _finite(value)}
        if np.isfinite(low) and np.isfinite(high):
            one |= {"low": low, "high": high}
        if name in result.spread:
            one["spread"] = result.spread[name]
        found.append(one)
    return found


def _finite(value: float) -> float | None:
    """Return what JSON can hold."""
    return float(value) if np.isfinite(value) else None


@frozen(eq=False)
class Ranked:
    """A test whose queries are ranked, and the samples that its rows are of."""

    rankings: Rankings
    samples: Mapping[str, Sample]

    @classmethod
    def of(cls, test: Test, query: Features, gallery: Features, evaluator: Evaluator) -> Ranked:
        """Rank the gallery for every query, as the test is judged."""
        rankings = Rankings.of(query, gallery, **evaluator.terms(test, "rank lists", query))
        # where a protocol draws at random, queries and gallery come from both
        both = {sample.name: sample for sample in (*test.splits.gallery, *test.splits.query)}
        return cls(rankings, both)

    def query(self, number: int) -> Sample:
        """Return the image of a query."""
        return self._sample(self.rankings.query, number)

    def image(self, number: int) -> Sample:
        """Return an image of the gallery."""
        return self._sample(self.rankings.gallery, number)

    def _sample(self, features: Features, number: int) -> Sample:
        assert features.paths is not None
        return self.samples[features.paths[number]]

    def choose(self, count: int) -> NDArray[np.int64]:
        """Return up to `count` queries by ascending average precision: the lowest, and some spread over the rest."""
        known = np.flatnonzero(~np.isnan(self.rankings.average_precision))
        order = known[np.argsort(self.rankings.average_precision[known], kind="stable")]
        lowest = count - count // 4
        if len(order) <= count:
            return order
        rest = order[lowest:]
        return np.concatenate([order[:lowest], rest[np.linspace(0, len(rest) - 1, count // 4).astype(int)]])

    def lists(self, queries: NDArray[np.int64], pictures: Pictures) -> list[dict[str, Any]]:
        """Return rank lists as a page shows them."""
        return [self._shown(found, pictures) for found in self.rankings.lists(queries, FIRST)]

    def _shown(self, found: RankList, pictures: Pictures) -> dict[str, Any]:
        query = self.query(found.query)

        def item(number: int, distance: float, place: int, right: bool) -> dict[str, Any]:
            sample = self.image(number)
            return {
                "picture": pictures.number(sample),
                "identity": sample.identity,
                "camera": sample.camera,
                "distance": float(f"{distance:.4g}"),
                "place": place,
                "right": right,
            }

        first = zip(found.images.tolist(), found.distances.tolist(), found.right.tolist(), strict=True)
        later = zip(found.missed.tolist(), found.missed_distances.tolist(), found.missed_places.tolist(), strict=True)
        return {
            "query": found.query,
            "picture": pictures.number(query),
            "identity": query.identity,
            "camera": query.camera,
            "AP": found.average_precision,
            "found": [item(number, far, place, right) for place, (number, far, right) in enumerate(first, 1)],
            "missed": [item(number, far, place, True) for number, far, place in list(later)[:MISSED]],
            "missed in all": len(found.missed),
        }

    def confusions(self, pictures: Pictures) -> list[dict[str, Any]]:
        """Return which identities are taken for which others most often, with the worst example of each."""
        shown = []
        precisions = self.rankings.average_precision
        for identity, other, queries in self.rankings.confusions()[:_CONFUSIONS]:
            worst = int(queries[np.argmin(precisions[queries])])
            known = self.rankings.query.identities == identity
            shown.append(
                {
                    "identity": identity,
                    "other": other,
                    "count": len(queries),
                    "of": int(np.sum(known & ~np.isnan(precisions))),
                    "picture": pictures.number(self.query(worst)),
                    "found": pictures.number(self.image(int(self.rankings.first_wrong[worst]))),
                }
            )
        return shown


def hard_pairs(
    test: Test, query: Features, gallery: Features, evaluator: Evaluator, pictures: Pictures, count: int
) -> dict[str, Any]:
    """Return the pairs of a verification that are farthest from being told right, as a page shows them."""
    pairs = HardPairs.of(query, gallery, count, distance=evaluator.options.distance)

    def shown(rows: NDArray[np.int64], distances: NDArray[np.float32]) -> list[dict[str, Any]]:
        return [
            {
                "pictures": [pictures.number(test.splits.query[row]), pictures.number(test.splits.gallery[row])],
                "identities": [test.splits.query[row].identity, test.splits.gallery[row].identity],
                "distance": float(f"{distance:.4g}"),
            }
            for row, distance in zip(rows.tolist(), distances.tolist(), strict=True)
        ]

    return {
        "genuine": shown(pairs.genuine, pairs.genuine_distances),
        "impostor": shown(pairs.impostor, pairs.impostor_distances),
    }
