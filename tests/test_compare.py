"""What a run keeps of its tests, and what is made of it: other evaluations, and comparisons."""

import json
import shutil

import numpy as np
import pytest
from attrs import evolve

from reidcore.results import load_results, save_results
from reidcore.retrieval import Features, evaluate
from reidcore.testing import tiny_recipe


@pytest.fixture
def runs(toy_recipe, reidcore):
    """Two finished runs that differ in their seed."""
    folder = toy_recipe.parent / "runs"
    for seed in (1, 2):
        more = [
            "--set",
            f"run.seed={seed}",
            "--set",
            f"run.name=s{seed}",
            "--set",
            'metric=[{name="map"},{name="cmc"}]',
        ]
        status, _, err = reidcore("run", toy_recipe, "-q", "--set", "training.epochs=1", *more)
        assert status == 0, err
    return folder / "s1", folder / "s2"


def test_results_come_back_as_they_were(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 5)
    side = Features(random.normal(size=(30, 4)).astype(np.float32), labels, random.integers(0, 3, 30))
    result = evaluate(side, side, metrics=("map", "roc"), protocol="vehicleid", intervals=True)
    save_results(tmp_path, {"a label / of any kind": result})
    ((label, again),) = load_results(tmp_path).items()
    assert label == "a label / of any kind"
    assert dict(again) == dict(result)
    assert (again.queries, again.covered, again.drawn) == (result.queries, result.covered, result.drawn)
    assert again.intervals == result.intervals and again.spread == result.spread
    np.testing.assert_array_equal(again.identities, result.identities)
    for name in ("per_query", "resampled"):
        ours, theirs = getattr(result, name), getattr(again, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    np.testing.assert_array_equal(again.curves["roc"]["tar"], result.curves["roc"]["tar"])


def test_a_run_is_compared_with_another(runs, reidcore):
    status, out, err = reidcore("compare", *runs)
    assert status == 0, err
    assert "folder: 6 of 6 queries" in out
    status, out, _ = reidcore("compare", *runs, "--json")
    found = json.loads(out)["folder"]
    first, second = (json.loads((run / "metrics.json").read_text())["folder"] for run in runs)
    assert found["runs"] == {str(runs[0]): first, str(runs[1]): second}
    for name, difference in found["differences"][str(runs[1])].items():
        assert difference["difference"] == pytest.approx(second[name] - first[name])
        # of three identities nothing can be said
        assert (difference["low"], difference["high"], difference["verdict"]) == (None, None, "undecided")


def test_what_cannot_be_compared_is_refused(runs, reidcore, tmp_path):
    first, second = runs
    assert reidcore("compare", first, first)[2] == "expected run folders that are all different\n"
    assert reidcore("compare", first)[2] == (
        f"{first} has no two tests of the same queries and gallery to compare; name another run to compare it with\n"
    )
    assert reidcore("compare", first, first)[0] == 2
    assert "is not a finished run: it has no metrics.json" in reidcore("compare", first, tmp_path)[2]
    (second / "evaluation.safetensors").rename(second / "kept")
    status, _, err = reidcore("compare", *runs)
    assert status == 2 and err.endswith(f"holds no results to compare; make them: reidcore evaluate {second}\n")
    assert reidcore("evaluate", second)[0] == 0
    assert reidcore("compare", *runs)[0] == 0
    results = load_results(second)
    save_results(second, {"other": results["folder"]})
    assert "have no test in common" in reidcore("compare", *runs)[2]
    other = {"folder": load_results(second)["other"]}
    save_results(second, {"folder": evolve(other["folder"], question="another")})
    assert "were evaluated by another protocol, or on other queries or another gallery" in reidcore("compare", *runs)[2]


def test_features_are_extracted_once(runs, reidcore, monkeypatch):
    run = runs[0]
    assert len(list((run / "features").iterdir())) == 2
    monkeypatch.setattr("reidcore.assemble.extract_whole", None)  # which would fail
    before = (run / "evaluation.safetensors").read_bytes()
    more = ["--set", "evaluation.distance=euclidean", "--set", 'test.0.postprocess=[{name="query-expansion"}]']
    status, out, err = reidcore("evaluate", run, *more, "--intervals")
    assert status == 0, err
    assert " to " in out
    assert (run / "evaluation.safetensors").read_bytes() == before  # of the run's own tests
    assert reidcore("evaluate", run)[0] == 0


def test_the_tests_of_a_run_are_compared(toy_recipe, reidcore):
    test = {"name": "folder", "root": str(toy_recipe.parent / "toy")}
    again = {**test, "label": "again", "postprocess": [{"name": "k-reciprocal", "k1": 2, "k2": 1}]}
    other = {**test, "label": "other", "protocol": "all-cameras"}
    recipe = tiny_recipe(toy_recipe.parent, test=[test, again, other])
    assert reidcore("run", recipe, "-q", "--set", "training.epochs=0")[0] == 0
    run = toy_recipe.parent / "runs" / "toy"
    status, out, err = reidcore("compare", run)
    assert status == 0, err
    assert "again" in out
    assert "other" not in out
    assert "hold all those of a test at once" in out
    metrics = json.loads((run / "metrics.json").read_text())
    compared = json.loads(reidcore("compare", run, "--json")[1])
    assert compared.keys() == {"folder"}
    assert compared["folder"]["tests"].keys() == {"folder", "again"}
    found = compared["folder"]["differences"]["again"]["mAP"]
    assert found["difference"] == pytest.approx(metrics["again"]["mAP"] - metrics["folder"]["mAP"], abs=1e-9)


def test_features_of_another_model_or_images_are_not_taken(runs, toy_folder, reidcore):
    run = runs[0]
    kept = {file.name for file in (run / "features").iterdir()}
    image = next((toy_folder / "query").iterdir())
    image.write_bytes(next((toy_folder / "gallery").iterdir()).read_bytes())
    assert reidcore("evaluate", run)[0] == 0
    assert len(list((run / "features").iterdir())) == len(kept) + 1  # the queries'
    assert reidcore("evaluate", run, "--set", "evaluation.flip=false")[0] == 0
    assert len(list((run / "features").iterdir())) == len(kept) + 3
    shutil.copy(runs[1] / "model.safetensors", run / "model.safetensors")
    assert reidcore("evaluate", run)[0] == 0
    assert len(list((run / "features").iterdir())) == len(kept) + 5


def test_damaged_features_are_made_again(runs, reidcore):
    run = runs[0]
    for file in (run / "features").iterdir():
        file.write_bytes(b"nonsense")
    assert reidcore("evaluate", run)[0] == 0


def test_features_need_not_be_kept(toy_recipe, reidcore):
    more = ["--set", "training.epochs=0", "--set", "evaluation.keep_features=false"]
    assert reidcore("run", toy_recipe, "-q", *more)[0] == 0
    assert not (toy_recipe.parent / "runs" / "toy" / "features").exists()


def test_another_protocol_is_an_override(runs, reidcore):
    for protocol in ("multi-query", "single-gallery-shot", "all-cameras", "vehicleid", "in-shop"):
        status, out, err = reidcore("evaluate", runs[0], "--set", f"test.0.protocol={protocol}")
        assert status == 0, err
        assert ("±" in out) == (protocol in ("single-gallery-shot", "vehicleid"))
    more = ["--set", "test.0.protocol=multi-query", "--set", "test.0.cameras=ignore"]
    status, _, err = reidcore("evaluate", runs[0], *more)
    assert status == 2 and "protocol 'multi-query' compares across cameras; expected cameras = \"use\"" in err


def test_a_run_is_evaluated_on_another_data_set(runs, reidcore):
    more = ["--set", "test=[{name='synthetic', identities=4, label='drawn'}]"]
    status, out, err = reidcore("evaluate", runs[0], *more)
    assert status == 0, err
    assert "drawn" in out
