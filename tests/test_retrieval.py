"""Retrieval against slow, obvious references, and against small cases worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from reidcore.builtin.modules.metrics import (
    CumulativeMatching,
    MeanAveragePrecision,
    MeanInverseNegativePenalty,
)
from reidcore.errors import ContractError, DataError, ReidError
from reidcore.retrieval import Features, Problem, RankingBlock, coverage, evaluate, rank
from reidcore.retrieval.distance import Distances
from reidcore.retrieval.pairs import Pairs
from reidcore.retrieval.postprocess import Final, check_chain

METRICS = (CumulativeMatching((1, 5, 10)), MeanAveragePrecision(), MeanInverseNegativePenalty())
DISTRACTOR = -1


def features(embeddings: Any, identities: Any, cameras: Any = None, **more: Any) -> Features:
    cameras = [0] * len(embeddings) if cameras is None else cameras
    return Features(np.asarray(embeddings, np.float32), np.asarray(identities), np.asarray(cameras), **more)


def random_problem(seed: int, protocol: str = "cross-camera") -> Problem:
    """Few identities, cameras and distinct embeddings: ties, junk, distractors, queries without a match."""
    random = np.random.default_rng(seed)
    paths = [f"{number}.jpg" for number in range(60)]

    def side(size: int) -> Features:
        return features(
            random.integers(0, 3, (size, 2)),
            random.integers(DISTRACTOR, 7, size),
            random.integers(0, 3, size),
            paths=list(random.choice(paths, size, replace=False)),
        )

    return Problem(side(15), side(40), protocol, "euclidean")


def reference(problem: Problem) -> tuple[dict[str, float], int]:
    """The figures for the euclidean distance by plain loops, and the number of queries with a match."""
    query, gallery = problem.query, problem.gallery
    precisions, penalties, firsts = [], [], []
    for q in range(len(query)):
        ranking = []
        for g in range(len(gallery)):
            same = query.identities[q] == gallery.identities[g] and query.identities[q] != -1
            if problem.protocol == "cross-camera":
                junk = same and query.cameras[q] == gallery.cameras[g]
            else:
                assert query.paths and gallery.paths
                junk = query.paths[q] == gallery.paths[g]
            if not junk:
                squared = sum((query.embeddings[q] - gallery.embeddings[g]) ** 2)
                ranking.append((squared, same))  # sorts wrong before right at equal distance
        hits = [place for place, (_, same) in enumerate(sorted(ranking), start=1) if same]
        if hits:
            precisions.append(sum((n + 1) / place for n, place in enumerate(hits)) / len(hits))
            penalties.append(len(hits) / hits[-1])
            firsts.append(hits[0])
    covered = len(firsts)
    figures = {f"rank{k}": sum(first <= k for first in firsts) / covered for k in (1, 5, 10)}
    return figures | {"mAP": sum(precisions) / covered, "mINP": sum(penalties) / covered}, covered


@pytest.mark.parametrize("protocol", ["cross-camera", "all-cameras"])
@pytest.mark.parametrize("seed", range(25))
def test_figures_equal_the_three_loop_reference(seed: int, protocol: str) -> None:
    problem = random_problem(seed, protocol)
    result = evaluate(problem.query, problem.gallery, distance="euclidean", metrics=METRICS, protocol=protocol)
    figures, covered = reference(problem)
    assert dict(result) == pytest.approx(figures, rel=0, abs=1e-12)
    assert (result.queries, result.covered) == (15, covered)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["match", "junk", "wrong"])), min_size=1, max_size=30))
def test_ranks_equal_a_full_sort(gallery: list[tuple[int, str]]) -> None:
    distances = np.array([[distance for distance, _ in gallery]], np.float32)
    matches, junk = (Pairs(1, *np.nonzero([[label == of for _, label in gallery]])) for of in ("match", "junk"))
    ranking = sorted((distance, label == "match") for distance, label in gallery if label != "junk")
    expected = [place for place, (_, match) in enumerate(ranking) if match]
    assert RankingBlock(slice(0, 1), distances, matches, junk).ranks[0].tolist() == expected


def test_small_case_by_hand() -> None:
    # Positions on a line. The query, identity 7 under camera 0, stands at 0.
    #   at 1  identity 7, camera 0   junk: not in the ranking
    #   at 2  identity 7, camera 1   place 1, precision 1/1
    #   at 3  identity 8             place 2
    #   at 4  identity 7, camera 2   tie with the distractor, so it comes behind it: place 4, precision 2/4
    #   at 4  distractor             place 3
    #   at 9  identity 7, camera 1   place 5, precision 3/5
    query = features([[0]], [7], [0])
    gallery = features([[1], [2], [3], [4], [4], [9]], [7, 7, 8, 7, DISTRACTOR, 7], [0, 1, 0, 2, 0, 1])
    result = evaluate(query, gallery, distance="euclidean", metrics=METRICS)
    assert result["mAP"] == pytest.approx((1 + 2 / 4 + 3 / 5) / 3, abs=1e-12)  # 0.7
    assert result["mINP"] == pytest.approx(3 / 5, abs=1e-12)
    assert result["rank1"] == 1


def test_a_model_that_makes_all_images_equal_comes_last() -> None:
    # 1 match among 4 images, all at distance 0: the match counts as the last, place 4.
    query = features([[1, 1]], [0], [0])
    gallery = features([[1, 1]] * 4, [0, 1, 2, 3], [1] * 4)
    result = evaluate(query, gallery, metrics=METRICS)
    assert dict(result) == {"rank1": 0, "rank5": 1, "rank10": 1, "mAP": 1 / 4, "mINP": 1 / 4}


def test_per_query_values_are_nan_where_nothing_can_be_found() -> None:
    # Query 0 finds its image behind a wrong one, at place 2; query 1 has no image in the gallery.
    query = features([[0], [5]], [1, 2], [0, 0])
    gallery = features([[1], [2]], [3, 1], [1, 1])
    result = evaluate(query, gallery, distance="euclidean", metrics=METRICS)
    assert {name: values.tolist()[0] for name, values in result.per_query.items()} == {
        "first_rank": 2,
        "AP": 0.5,
        "INP": 0.5,
    }
    assert all(np.isnan(values[1]) for values in result.per_query.values())
    assert (result.queries, result.covered) == (2, 1)


def test_the_query_does_not_find_itself_when_cameras_play_no_role() -> None:
    both = features([[0], [1], [2]], [1, 2, 1], paths=["a", "b", "c"])
    result = evaluate(both, both, distance="euclidean", metrics=METRICS, protocol="all-cameras")
    # a: b (wrong) then c, place 2; c: b (wrong) then a, place 2; b has no other image.
    assert (result["mAP"], result.covered) == (0.5, 2)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_block_size_does_not_change_anything(distance: str) -> None:
    random = np.random.default_rng(0)
    query = features(random.normal(size=(33, 24)), range(33))
    gallery = features(random.normal(size=(101, 24)), range(101))
    gallery.embeddings[70] = gallery.embeddings[3]  # a copy ties whatever piece it falls into
    problem = Problem(query, gallery, distance=distance)
    whole = [*Distances(problem).blocks()]
    assert len(whole) == 1
    for budget in (1, 4000, 20_000):
        blocks = [*Distances(problem, block_bytes=budget).blocks()]
        assert len(blocks) > 1
        assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == [*range(33)]
        pieces = np.concatenate([block.numpy() for _, block in blocks])
        np.testing.assert_array_equal(pieces, whole[0][1].numpy())
        np.testing.assert_array_equal(pieces[:, 70], pieces[:, 3])


@pytest.mark.parametrize("offset", [0, 1000])
def test_distances_equal_float64(offset: float) -> None:
    random = np.random.default_rng(1)
    query = features(random.normal(size=(20, 64)) + offset, range(20))
    gallery = features(random.normal(size=(50, 64)) + offset, range(50))
    q, g = (side.embeddings.astype(np.float64) for side in (query, gallery))
    problem = Problem(query, gallery)
    ((_, found),) = Distances(evolve(problem, distance="euclidean")).blocks()
    np.testing.assert_allclose(found, np.linalg.norm(q[:, None] - g, axis=2), rtol=1e-6)
    ((_, found),) = Distances(problem).blocks()
    cosine = q @ g.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(found, 1 - cosine, rtol=0, atol=1e-7)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e18])
def test_copies_are_at_distance_zero(distance: str, scale: float) -> None:
    images = features(np.random.default_rng(2).normal(size=(30, 500)) * scale, range(30))
    ((_, found),) = Distances(Problem(images, images, distance=distance)).blocks()
    assert (found.diagonal() == 0).all()
    assert (found >= 0).all()


@given(st.integers(0, 1000), st.integers(1, 60))
def test_rank_equals_a_stable_sort(seed: int, k: int) -> None:
    problem = random_problem(seed)
    indices, distances = rank(problem.query, problem.gallery, k, distance="euclidean")
    ((_, whole),) = Distances(evolve(problem, distance="euclidean")).blocks()
    expected = np.argsort(whole.numpy(), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(distances, np.take_along_axis(whole.numpy(), expected, axis=1))
    assert (str(indices.dtype), str(distances.dtype)) == ("int64", "float32")


def test_names_are_looked_up_in_the_catalog() -> None:
    class Catalog:
        def build(self, kind: str, name: str, options: Any) -> Any:
            assert kind == "metric"
            return CumulativeMatching(**options) if name == "cmc" else MeanAveragePrecision()

    problem = random_problem(0)
    wanted = ["map", ("cmc", {"ranks": [3]}), MeanInverseNegativePenalty()]
    catalog: Any = Catalog()
    result = evaluate(problem.query, problem.gallery, distance="euclidean", metrics=wanted, catalog=catalog)
    assert [*result] == ["mAP", "rank3", "mINP"]


def test_the_metrics_of_the_core_are_the_default() -> None:
    problem = random_problem(0)
    result = evaluate(problem.query, problem.gallery, distance="euclidean")
    assert dict(result) == dict(evaluate(problem.query, problem.gallery, distance="euclidean", metrics=METRICS))


def test_embeddings_may_be_memory_mapped(tmp_path: Path) -> None:
    problem = random_problem(0)
    np.save(tmp_path / "gallery.npy", problem.gallery.embeddings)
    mapped = evolve(problem.gallery, embeddings=np.load(tmp_path / "gallery.npy", mmap_mode="r"))
    found, _ = rank(problem.query, mapped, distance="euclidean")
    np.testing.assert_array_equal(found, rank(problem.query, problem.gallery, distance="euclidean")[0])


# coverage


def test_coverage_is_silent_when_every_query_has_a_match() -> None:
    found = coverage([1, 2], [0, 0], [1, 2, 2], [1, 0, 1])
    assert (found.queries, found.covered, found.describe()) == (2, 2, "")


COVERAGE = {
    "one camera": (
        ([1] * 80, [0] * 80, [1, 1], [0, 0]),
        "80 of 80 queries have no match: 80 see their identity only under their own camera, which the "
        'cross-camera protocol leaves out; all images carry camera 0; write cameras = "ignore" in this '
        "[[test]] if the set has no cameras, or put the camera in the file names",
    ),
    "no known camera": (
        ([1], [-1], [1], [-1]),
        "1 of 1 queries has no match: 1 sees its identity only under its own camera, which the "
        'cross-camera protocol leaves out; no image has a known camera; write cameras = "ignore" in this '
        "[[test]] if the set has no cameras, or put the camera in the file names",
    ),
    "empty gallery": (
        ([1, 2], [0, 1], [], []),
        "2 of 2 queries have no match: 2 see their identity nowhere in the gallery",
    ),
    "both reasons": (
        ([1, 2, 3, -1], [0, 0, 0, 0], [1, 2, 2, -1], [0, 0, 1, 1]),
        "3 of 4 queries have no match: 2 see their identity nowhere in the gallery, 1 sees its identity only "
        "under its own camera, which the cross-camera protocol leaves out",
    ),
}


@pytest.mark.parametrize("labels, sentence", COVERAGE.values(), ids=COVERAGE)
def test_coverage_says_why(labels: Any, sentence: str) -> None:
    assert coverage(*labels).describe() == sentence


def test_coverage_with_all_cameras_needs_another_image() -> None:
    labels = ([1, 2], [0, 0], [1, 2, 2], [0, 0, 0], "all-cameras")
    assert coverage(*labels).covered == 2
    found = coverage(*labels, query_paths=["a", "b"], gallery_paths=["a", "b", "c"])
    assert found.describe() == "1 of 2 queries has no match: 1 sees its identity only in its own image"


@pytest.mark.parametrize("protocol", ["cross-camera", "all-cameras"])
@pytest.mark.parametrize("seed", range(25))
def test_coverage_equals_the_masks(seed: int, protocol: str) -> None:
    problem = random_problem(seed, protocol)
    block = problem.block(slice(0, 15), np.zeros((15, 40), np.float32))
    matches, junk = block.matches, block.junk
    found = problem.coverage()
    assert found.covered == matches.any(axis=1).sum()
    assert found.queries == found.covered + found.absent + found.one_camera + found.itself
    assert not (matches & junk).any()


def test_evaluation_without_any_match_says_why() -> None:
    with pytest.raises(DataError, match="1 of 1 queries has no match: 1 sees its identity nowhere"):
        evaluate(features([[1]], [1]), features([[1]], [2]), metrics=METRICS)


# post-processors


@frozen(eq=False)
class Shifted:
    problem: Problem
    add: float = 0

    def rows(self, rows: slice, distances: Any) -> Any:
        return distances + self.add


@frozen(eq=False)
class Toy:
    """Post-processor that adds `shift` to the gallery's embeddings, and `add` to the distances."""

    stage: str = "features"
    needs: tuple[str, ...] = ()
    shift: float = 0
    add: float = 0

    def prepare(self, problem: Problem) -> Shifted:
        gallery = evolve(problem.gallery, embeddings=problem.gallery.embeddings + self.shift)
        return Shifted(evolve(problem, gallery=gallery), self.add)


def chain_distances(*chain: Any) -> np.ndarray:
    problem = Problem(features([[0], [10]], [0, 1]), features([[1], [2]], [0, 1]), distance="euclidean")
    return np.concatenate([block for _, block in Final.of(problem, chain, block_bytes=1).blocks()])


def test_postprocessors_run_one_after_the_other() -> None:
    # The gallery moves from 1, 2 to 4, 5, then 0.5 is added to all distances.
    chain = (Toy(shift=2), Toy(shift=1), Toy("rows", add=0.25), Toy("rows", add=0.25))
    assert chain_distances(*chain).tolist() == [[4.5, 5.5], [6.5, 5.5]]


CHAINS = {
    "order": (
        [Toy("rows"), Toy("features")],
        r"Toy \(stage features\) comes after Toy \(stage rows\); the order is features, graph, rows",
    ),
    "two graphs": ([Toy("graph"), Toy("graph")], "Toy and Toy are both of stage graph; at most one"),
    "unknown stage": ([Toy("last")], "Toy is of stage 'last'; expected one of features, graph, rows"),
    "extras": (
        [Toy(needs=("parts", "grid"))],
        r"Toy needs the extras parts, which the features do not have \(they have: grid\)",
    ),
}


@pytest.mark.parametrize("chain, message", CHAINS.values(), ids=CHAINS)
def test_chains_that_cannot_run_are_refused(chain: list[Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_chain(chain, {"grid"})
    images = features([[1]], [1], extras={"grid": np.zeros((1, 2))})
    with pytest.raises(ContractError, match=message):
        rank(images, images, postprocess=chain)


def test_good_chain_is_accepted() -> None:
    chain: list[Any] = [Toy(), Toy("graph", needs=("grid",)), Toy("rows")]
    check_chain(chain, {"grid"})


class Broken(Toy):
    def prepare(self, problem: Problem) -> Any:
        class Cut(Shifted):
            def rows(self, rows: slice, distances: Any) -> Any:
                return distances[:, :1]

        return Cut(problem)


class Doubling(Toy):
    def prepare(self, problem: Problem) -> Any:
        return Shifted(evolve(problem, gallery=features([[1]] * 4, [1] * 4)))


def test_postprocessors_that_break_their_promise_are_named() -> None:
    with pytest.raises(ContractError, match=r"Broken returned distances of shape \(1, 1\); expected"):
        chain_distances(Broken("rows"))
    with pytest.raises(ContractError, match=r"Doubling made \(2, 4\) features .* out of \(2, 2\)"):
        chain_distances(Doubling())


def test_distances_that_are_nan_are_refused() -> None:
    images = features([[1], [2]], [1, 1], [0, 1])
    for use in (evaluate, rank):
        more: dict[str, Any] = {"metrics": METRICS} if use is evaluate else {}
        with pytest.raises(ReidError, match="4 distances are NaN, the first of query 0; check the"):
            use(images, images, postprocess=[Toy("rows", add=float("nan"))], **more)


# what is wrong with the input

ONE = features([[1, 2]], [1])
INPUTS = {
    "empty": (evolve(ONE, embeddings=np.zeros((0, 2))), "the query set is empty"),
    "one-dimensional": (evolve(ONE, embeddings=np.zeros(2)), r"query embeddings have shape \(2,\); expected"),
    "text": (evolve(ONE, embeddings=[["a", "b"]]), "query embeddings are not an array of numbers"),
    "dimension": (features([[1, 2, 3]], [1]), "query embeddings have 3 dimensions and gallery embeddings 2"),
    "identities": (features([[1, 2]], [1, 1], [0]), r"query identities have shape \(2,\); expected \(1,\)"),
    "cameras": (features([[1, 2]], [1], [0, 0]), r"query cameras have shape \(2,\); expected \(1,\)"),
    "names": (features([[1, 2]], ["a"]), "query identities are of type <U1; expected integers"),
    "paths": (features([[1, 2]], [1], paths=["a", "b"]), "query has 2 paths for 1 embeddings"),
    "extras": (features([[1, 2]], [1], extras={"grid": []}), "query extra 'grid' has 0 rows for 1"),
    "nan": (
        features([[1, 2], [1, np.nan], [np.inf, 0]], [1, 1, 1]),
        "query: embeddings that compare with nothing: row 1 is not finite, row 2 is not finite; leave these images out",
    ),
    "nan with a path": (
        features([[1, -np.inf]], [1], paths=["a.jpg"]),
        r"compare with nothing: row 0 \(a\.jpg\) is not finite",
    ),
    "zeros": (
        features([[0, 0], [1, 2], [0, 0], [0, 0], [0, 0]], [1] * 5),
        "row 0 is all zeros, row 2 is all zeros, row 3 is all zeros and 1 more",
    ),
    "booleans": (evolve(ONE, embeddings=np.ones((1, 2), bool)), "not an array of numbers .*: their type is bool"),
    "groups": (features([[1, 2]], [1], groups=[1, 2]), "query has 2 groups for 1 embeddings"),
    "too large": (evolve(ONE, embeddings=np.full((1, 2), 1e300)), "row 0 is not finite"),
}


@pytest.mark.parametrize("query, message", INPUTS.values(), ids=INPUTS)
def test_unsound_features_are_refused(query: Features, message: str) -> None:
    with pytest.raises(ReidError, match=message):
        rank(query, ONE)


def test_unknown_names_suggest_the_nearest() -> None:
    expected = "unknown distance 'cosin'; expected cosine or euclidean; did you mean 'cosine'?"
    with pytest.raises(ReidError) as error:
        rank(ONE, ONE, distance="cosin")
    assert str(error.value) == expected
    with pytest.raises(ReidError, match=r"unknown protocol 'cross_camera'; .* did you mean 'cross-camera'\?"):
        evaluate(ONE, ONE, protocol="cross_camera", metrics=METRICS)
    with pytest.raises(ReidError, match="k is 0; expected at least 1"):
        rank(ONE, ONE, 0)


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(ContractError, match=r"found 3; expected the name of a metric, .* or a built metric"):
        evaluate(ONE, ONE, metrics=[3])


def test_importing_retrieval_does_not_import_torch() -> None:
    program = "import sys, reidcore.retrieval, reidcore.builtin.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
