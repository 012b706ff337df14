"""The built-in metrics: hand-computed values, merging, and their configs."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidcore.builtin.metrics import CMC, MAP, MINP, reidcore_metrics
from reidcore.builtin.modules.metrics import average_precisions, first_ranks, inverse_negative_penalties
from reidcore.errors import ContractError, DataError
from reidcore.retrieval import Features, Problem, evaluate
from reidcore.retrieval.postprocess import Final


def test_values_by_hand() -> None:
    # One query with matches at places 2, 3 and 6: precisions 1/2, 2/3, 3/6; and one with a match at place 4.
    ranks = np.array([1, 2, 5, 3]), np.array([3, 1])
    assert first_ranks(*ranks).tolist() == [2, 4]
    assert average_precisions(*ranks) == pytest.approx([(1 / 2 + 2 / 3 + 3 / 6) / 3, 1 / 4], abs=1e-15)
    assert inverse_negative_penalties(*ranks).tolist() == [3 / 6, 1 / 4]


def problem() -> Problem:
    random = np.random.default_rng(0)

    def side(size: int) -> Features:
        return Features(
            random.normal(size=(size, 4)).astype(np.float32),
            random.integers(0, 12, size),
            random.integers(0, 3, size),
        )

    return Problem(side(20), side(50))


@pytest.mark.parametrize("config", [CMC(), MAP(), MINP()], ids=str)
def test_merged_halves_equal_the_whole(config: Any) -> None:
    whole, first, second = (config.build().start(problem()) for _ in range(3))
    for rows, distances in Final.of(problem(), [], block_bytes=1).blocks():
        block = problem().block(rows, distances)
        whole.update(block)
        (first if rows.start % 2 else second).update(block)
    first.merge(pickle.loads(pickle.dumps(second)))  # as it comes from another process
    assert first.result() == whole.result()
    ((name, values),) = first.per_query.items()
    np.testing.assert_array_equal(values, whole.per_query[name])


def test_the_ranks_of_cmc_are_an_option() -> None:
    side = problem()
    result = evaluate(side.query, side.gallery, metrics=[CMC(ranks=(1, 20)).build()])
    assert [*result] == ["rank1", "rank20"]
    with pytest.raises(ValueError, match="found 0; expected at least 1"):
        CMC(ranks=(0, 1))


def test_two_metrics_of_the_same_figure_are_refused() -> None:
    side = problem()
    with pytest.raises(ContractError, match="two metrics report mAP; leave one out"):
        evaluate(side.query, side.gallery, metrics=[MAP().build(), MAP().build()])


def test_a_tally_without_any_match_has_no_figure() -> None:
    with pytest.raises(DataError, match="none of 20 queries has a match"):
        MAP().build().start(problem()).result()


def test_the_hook_offers_the_metrics() -> None:
    assert [component.name for component in reidcore_metrics()] == ["cmc", "map", "minp", "recall", "roc"]


LABELS = st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1))


@given(
    query=st.lists(LABELS, min_size=1, max_size=4),
    gallery=st.lists(LABELS, min_size=1, max_size=6),
    half=st.booleans(),
    protocol=st.sampled_from(["cross-camera", "all-cameras"]),
)
def test_figures_equal_plain_loops_whatever_the_problem(query: Any, gallery: Any, half: bool, protocol: str) -> None:
    """All ties, one identity, one camera, no match, a gallery smaller than k. Items: (place, identity, camera)."""

    def side(items: Any) -> Features:
        places, identities, cameras = np.array(items).T
        return Features(places[:, None].astype(np.float16 if half else np.float32), identities, cameras)

    expected = []
    for place, identity, camera in query:
        ranking = sorted(
            (abs(place - p), i == identity)  # sorts wrong before right at equal distance
            for p, i, c in gallery
            if protocol == "all-cameras" or i != identity or c != camera
        )
        hits = [rank for rank, (_, same) in enumerate(ranking, start=1) if same]
        if hits:
            expected.append((hits, len(ranking)))
    metrics = ["cmc", "map", "minp", ("recall", {"k": (1, 3)})]
    more = {"distance": "euclidean", "metrics": metrics, "protocol": protocol}
    if not expected:
        with pytest.raises(DataError, match="no match"):
            evaluate(side(query), side(gallery), **more)
        return
    result = evaluate(side(query), side(gallery), **more)
    assert (result.queries, result.covered) == (len(query), len(expected))
    figures = {f"rank{k}": np.mean([hits[0] <= k for hits, _ in expected]) for k in (1, 5, 10)}
    figures["mAP"] = np.mean([np.mean([n / rank for n, rank in enumerate(hits, 1)]) for hits, _ in expected])
    figures["mINP"] = np.mean([len(hits) / hits[-1] for hits, _ in expected])
    figures |= {f"recall@{k}": np.mean([hits[0] <= k for hits, _ in expected]) for k in (1, 3)}
    assert dict(result) == pytest.approx(figures, rel=0, abs=1e-12)
