"""Each protocol on cases small enough to be worked out by hand, and against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reidcore.builtin.modules.datasets import lfw
from reidcore.errors import ContractError, DataError, ReidError
from reidcore.retrieval import Features, coverage, evaluate
from reidcore.retrieval.protocol import REPEATS
from reidcore.retrieval.verification import fold_accuracies


def line(places: Any, identities: Any, cameras: Any = None, **more: Any) -> Features:
    """Images on a line: the distance is how far they are apart."""
    cameras = [0] * len(identities) if cameras is None else cameras
    return Features(np.array(places, np.float32)[:, None], np.array(identities), np.array(cameras), **more)


def test_multi_query_joins_the_images_of_an_identity_and_camera() -> None:
    # Alone the query at 0 is nearest to the wrong image at 1; the mean of 0 and 10 is nearest to its match at 5.
    query, gallery = line([0, 10, 3], [7, 7, 7], [0, 0, 1]), line([1, 5, 4], [8, 7, 7], [2, 2, 1])
    result = evaluate(query, gallery, distance="euclidean", protocol="multi-query")
    # joint query 1 (camera 0, at 5): 5, then 4, then 1: both matches first. Joint query 2 (camera 1, at 3): 4 is junk,
    # the match at 5 and the wrong image at 1 are both 2 away, and a tie counts against the query.
    assert (result.queries, result.covered) == (2, 2)
    assert result.per_query["AP"].tolist() == [1.0, 0.5]
    assert result.identities.tolist() == [7, 7]


def test_multi_query_joins_by_groups_when_it_is_told() -> None:
    query = line([0, 10, 20], [7, 7, 7], [0, 0, 0], groups=np.array([4, 4, 9]))
    result = evaluate(query, line([5, 20], [7, 8], [1, 1]), distance="euclidean", protocol="multi-query")
    assert result.queries == 2
    assert result.per_query["AP"].tolist() == [1.0, 0.5]


def test_multi_query_averages_directions_for_the_cosine() -> None:
    # One long and one short image, at right angles: their directions' mean is at 45 degrees, their own is not.
    query = Features(np.array([[100, 0], [0, 1]], np.float32), np.array([1, 1]), np.array([0, 0]))
    gallery = Features(np.array([[1, 1], [1, 0]], np.float32), np.array([1, 2]), np.array([1, 1]))
    assert evaluate(query, gallery, protocol="multi-query")["rank1"] == 1


def test_single_gallery_shot_leaves_one_image_an_identity() -> None:
    # The query's identity has a near and a far match, and junk nearer than both; another identity stands between them.
    # Whether the query finds it at rank 1 depends on which of the two was drawn.
    query = line([0] * 200, [1] * 200, [0] * 200)
    gallery = line([0, 1, 9, 5], [1, 1, 1, 2], [0, 1, 2, 1])
    result = evaluate(query, gallery, distance="euclidean", protocol="single-gallery-shot")
    assert result.covered == 200
    assert set(np.round(result.per_query["first_rank"] * REPEATS).astype(int)) <= set(range(REPEATS, 2 * REPEATS + 1))
    # 2000 fair draws; and with one image an identity, AP is 1 or 1/2
    assert result["rank1"] == pytest.approx(0.5, abs=0.06)
    assert result["mAP"] == pytest.approx(result["rank1"] + (1 - result["rank1"]) / 2, abs=1e-12)
    assert 0 < result.spread["rank1"] < 0.1
    again = evaluate(query, gallery, distance="euclidean", protocol="single-gallery-shot")
    other = evaluate(query, gallery, distance="euclidean", protocol="single-gallery-shot", seed=1)
    assert dict(again) == dict(result) != dict(other)


def test_single_gallery_shot_is_cross_camera_where_there_is_one_image_each() -> None:
    random = np.random.default_rng(0)
    query, gallery = (line(random.normal(size=20), range(20), [camera] * 20) for camera in (0, 1))
    single, plain = (
        evaluate(query, gallery, distance="euclidean", protocol=p) for p in ("single-gallery-shot", "cross-camera")
    )
    assert dict(single) == pytest.approx(dict(plain), abs=1e-12)
    assert max(single.spread.values()) < 1e-12


def test_single_gallery_shot_keeps_images_of_unknown_identity() -> None:
    query, gallery = line([0], [1], [0]), line([2, 1, 1.5], [1, -1, -1], [1, 1, 1])
    result = evaluate(query, gallery, distance="euclidean", protocol="single-gallery-shot")
    assert result.per_query["first_rank"].tolist() == [3]


def test_vehicleid_draws_one_gallery_image_an_identity() -> None:
    # Two identities far apart, three images each, and one of a single image: 4 queries a repeat, all found at once.
    images = line([0, 1, 2, 100, 101, 102, 500], [1, 1, 1, 2, 2, 2, 3])
    result = evaluate(images.take([0, 1, 2, 3]), images.take([4, 5, 6]), distance="euclidean", protocol="vehicleid")
    assert (result.queries, result.covered) == (4, 4)
    assert result["rank1"] == 1 and result.spread["rank1"] == 0
    assert result.identities.tolist() == [1, 1, 1, 2, 2, 2, 3]
    assert np.isnan(result.per_query["AP"][6]) and (result.per_query["AP"][:6] == 1).all()


def test_vehicleid_draws_with_equal_chance() -> None:
    # Identity 1 at 0 and 4, identity 2 at 1 and 5. By the gallery drawn: (0, 1): 4 is nearer to 1, 5 to 1: half are
    # right; (0, 5): 4 and 1 are wrong; (4, 1): 0 and 5 are wrong; (4, 5): 0 is right, 1 is nearer to 4: half.
    images, unknown = line([0, 4, 1, 5], [1, 1, 2, 2]), line([0], [-1])
    results = [evaluate(images, unknown, distance="euclidean", protocol="vehicleid", seed=seed) for seed in range(60)]
    assert np.mean([result["rank1"] for result in results]) == pytest.approx(1 / 4, abs=0.04)
    assert all((result.queries, result.covered) == (3, 2) for result in results)  # one query is of unknown identity


def test_vehicleid_counts_an_image_that_is_on_both_sides_once() -> None:
    images = line([0, 1, 100, 101], [1, 1, 2, 2], paths=list("abcd"))
    result = evaluate(images, images, distance="euclidean", protocol="vehicleid")
    assert result.queries == 2 and result["rank1"] == 1


def test_the_query_is_not_found_in_the_same_array() -> None:
    images = line([0, 1, 10, 12], [1, 1, 2, 3])
    result = evaluate(images, images, distance="euclidean", protocol="all-cameras")
    assert (result["rank1"], result.covered) == (1, 2)
    noise = line(np.random.default_rng(0).normal(size=200), np.repeat(np.arange(100), 2))
    assert evaluate(noise, noise, distance="euclidean", protocol="all-cameras")["rank1"] < 0.1


def test_arguments_are_left_alone() -> None:
    embeddings = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    images = Features(embeddings, np.array([1, 1, 2]), np.array([0, 0, 1]))
    gallery = Features(embeddings.copy(), np.array([1, 2, 2]), np.array([1, 1, 1]))
    for protocol in ("multi-query", "vehicleid", "cross-camera"):
        evaluate(images, gallery, protocol=protocol)
    assert embeddings.tolist() == [[3, 0], [0, 2], [1, 1]]


def test_in_shop_ignores_cameras() -> None:
    query, gallery = line([0], [1], [0]), line([1, 2], [1, 2], [0, 0])
    result = evaluate(query, gallery, distance="euclidean", metrics=["recall"], protocol="in-shop")
    assert dict(result) == {"recall@1": 1, "recall@2": 1, "recall@4": 1, "recall@8": 1}


def test_verification_by_hand() -> None:
    # Distances 1, 2, 5 of the same, 3, 6, 7 of different identities.
    first = line([0] * 6, [1, 2, 3, 4, 5, 6])
    second = line([1, 2, 5, 3, 6, 7], [1, 2, 3, 14, 15, 16])
    result = evaluate(first, second, distance="euclidean", protocol="verification", intervals=True)
    assert result["TAR@FAR=1e-2"] == pytest.approx(2 / 3)
    assert result["AUC"] == pytest.approx(8 / 9)
    assert (result.queries, result.covered) == (6, 6)
    # Six folds of one pair, whose threshold comes from the other five. Without 1 it is 2, and 1 is right; without 2 it
    # is 1 (as good as 5, and smaller), and 2 is wrong; without 5 it is 2: wrong; without 3 it is 5: wrong; without 6 or
    # 7 it is 2 (as good as 5): right.
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result.spread["accuracy"] > 0
    assert set(result.intervals) == {"TAR@FAR=1e-4", "TAR@FAR=1e-3", "TAR@FAR=1e-2", "AUC"}


def test_accuracy_over_folds_equals_plain_loops() -> None:
    random = np.random.default_rng(0)
    same = random.random(200) < 0.5
    distances = (random.normal(size=200) + np.where(same, 0, 1.5)).astype(np.float32)
    expected = []
    for fold in range(10):
        inside = slice(20 * fold, 20 * fold + 20)
        rest = np.delete(np.arange(200), np.arange(200)[inside])
        candidates = [-np.inf, *sorted(distances[rest])]
        right = [np.sum((distances[rest] <= t) == same[rest]) for t in candidates]
        threshold = candidates[int(np.argmax(right))]
        expected.append(np.mean((distances[inside] <= threshold) == same[inside]))
    np.testing.assert_allclose(fold_accuracies(distances, same), expected, atol=1e-12)


def test_what_is_no_list_of_pairs_is_refused() -> None:
    first = line([0, 1], [1, 2])
    with pytest.raises(ReidError, match="verification compares row with row; found 2 queries and 1 gallery images"):
        evaluate(first, line([0], [1]), distance="euclidean", protocol="verification")
    with pytest.raises(DataError, match="all 2 pairs are of the same identities"):
        evaluate(first, first, distance="euclidean", protocol="verification")
    with pytest.raises(ContractError, match="verification compares pairs: there is no ranking to post-process"):
        evaluate(first, line([0, 1], [1, 3]), protocol="verification", distance="euclidean", postprocess=[Nothing()])


class Nothing:
    stage = "rows"
    needs = ()

    def prepare(self, problem: Any) -> Any:
        return problem


@pytest.mark.parametrize("protocol", ["multi-query", "single-gallery-shot", "vehicleid", "in-shop", "verification"])
@pytest.mark.parametrize("seed", range(5))
def test_coverage_from_labels_is_what_evaluation_finds(protocol: str, seed: int) -> None:
    random = np.random.default_rng(seed)

    def side(count: int) -> Features:
        return line(random.normal(size=count), random.integers(-1, 6, count), random.integers(0, 3, count))

    query = side(25)
    gallery = side(25)
    found = coverage(query.identities, query.cameras, gallery.identities, gallery.cameras, protocol)
    result = evaluate(query, gallery, distance="euclidean", protocol=protocol)
    assert (result.queries, result.covered) == (found.queries, found.covered)
    if protocol in ("multi-query", "single-gallery-shot", "in-shop"):
        assert np.sum(~np.isnan(result.per_query["AP"])) == found.covered


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A list of four pairs of two people, and their images."""
    random = np.random.default_rng(0)
    for name, colour in (("Ann_A", (200, 30, 30)), ("Bob", (30, 30, 200))):
        (tmp_path / name).mkdir()
        for number in (1, 2, 3):
            noise = random.integers(0, 40, (16, 16, 3)) + np.array(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(tmp_path / name / f"{name}_{number:04d}.jpg")
    (tmp_path / "pairs.txt").write_text("1 2\nAnn_A 1 2\nBob 3 1\nAnn_A 1 Bob 1\nBob\t2\tAnn_A\t3\n")
    return tmp_path


def test_pairs_in_the_form_of_lfw(faces: Path) -> None:
    splits = lfw(faces, faces / "pairs.txt")
    files = [[str(sample.name).removeprefix(f"{faces}/") for sample in side] for side in (splits.query, splits.gallery)]
    assert files[0] == ["Ann_A/Ann_A_0001.jpg", "Bob/Bob_0003.jpg", "Ann_A/Ann_A_0001.jpg", "Bob/Bob_0002.jpg"]
    assert files[1] == ["Ann_A/Ann_A_0002.jpg", "Bob/Bob_0001.jpg", "Bob/Bob_0001.jpg", "Ann_A/Ann_A_0003.jpg"]
    identities = [[sample.identity for sample in side] for side in (splits.query, splits.gallery)]
    assert identities == [[0, 1, 0, 1], [0, 1, 1, 0]]


def test_faulty_pairs_are_named(faces: Path) -> None:
    (faces / "pairs.txt").write_text("Ann_A 1 2\nAnn_A one two\n\nBob 1\n")
    with pytest.raises(DataError) as error:
        lfw(faces, faces / "pairs.txt")
    assert str(error.value).splitlines() == [
        f"{faces}/pairs.txt:{line}: found '{text}'; expected '<name> <number> <number>' or "
        "'<name> <number> <name> <number>'"
        for line, text in ((2, "Ann_A one two"), (4, "Bob 1"))
    ]
    with pytest.raises(DataError, match=r"cannot read .*nothing\.txt: No such file"):
        lfw(faces, faces / "nothing.txt")


def test_a_run_verifies_pairs(faces: Path, toy_recipe: Path, reidcore: Any) -> None:
    test = f"test=[{{name='lfw', root='{faces}', pairs='{faces}/pairs.txt', protocol='verification'}}]"
    status, out, err = reidcore("run", toy_recipe, "-q", "--set", test, "--set", "training.epochs=0")
    assert status == 0, err
    assert "accuracy" in out and "TAR@FAR=1e-3" in out and "4 of 4" in out
    status, _, err = reidcore("evaluate", toy_recipe.parent / "runs" / "toy", "--set", "test.0.protocol=vehicleid")
    assert status == 0, err
    status, _, err = reidcore("run", toy_recipe, "--set", "run.name=b", "--set", "test.0.protocol=verification")
    assert status == 2 and "verification compares row with row; found 6 queries and" in err
