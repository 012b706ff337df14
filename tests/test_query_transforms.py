"""Tests whose queries are transformed, and post-processors that choose on held-out identities."""

import json
import re

import pytest
from PIL import Image

from reidcore.testing import tiny_recipe

PLUGIN = '''
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from reidcore import Component, hookimpl, option


class Blackening:
    resizes = False

    def __call__(self, image):
        return image * 0


@frozen(kw_only=True)
class Black:
    """Blackens images."""

    def build(self, height, width):
        return Blackening()


class Scaling:
    stage, needs = "rows", ()

    def __init__(self, seen):
        self.seen, self.scale = seen, None

    def choose(self, problem, blocks):
        with self.seen.open("a") as file:
            file.write(repr((sorted(set(problem.query.identities.tolist())), float(abs(problem.query.embeddings[0]
                - problem.query.embeddings[-1]).max()), len(problem.gallery))) + "\\n")
        self.scale = 0.25
        return {"scale": self.scale}

    def prepare(self, problem):
        self.problem = problem
        return self

    def rows(self, rows, distances):
        return distances * self.scale


@frozen(kw_only=True)
class Scaled:
    """Scales distances by what it chooses."""

    seen: Path = option(help="a file of what it sees")

    def build(self):
        return Scaling(self.seen)


@hookimpl
def reidcore_transforms() -> Iterator[Component]:
    yield Component(name="black", config=Black)


@hookimpl
def reidcore_postprocessors() -> Iterator[Component]:
    yield Component(name="scaled", config=Scaled)
'''


@pytest.fixture
def plugin(write):
    return write("parts.py", PLUGIN)


def test_only_the_queries_of_that_test_are_transformed(tmp_path, plugin, reidcore):
    sets = {"name": "folder", "root": str(tmp_path / "toy")}
    recipe = tiny_recipe(tmp_path, test=[sets, {**sets, "label": "dark", "query_transform": [{"name": "black"}]}])
    status, _, err = reidcore("run", recipe, "--plugin", plugin)
    assert status == 0, err
    assert len(list((tmp_path / "runs" / "toy" / "features").iterdir())) == 3  # the gallery is that of both
    metrics = json.loads((tmp_path / "runs" / "toy" / "metrics.json").read_text())
    for images in (tmp_path / "toy" / "query").iterdir():
        Image.new("RGB", (12, 20)).save(images)
    status, _, err = reidcore("run", recipe, "--plugin", plugin, "--set", "run.name=black")
    assert status == 0, err
    black = json.loads((tmp_path / "runs" / "black" / "metrics.json").read_text())
    assert black["folder"] == metrics["dark"] != metrics["folder"]
    assert black["dark"] == metrics["dark"]


def test_random_transforms_of_queries_are_the_same_at_every_evaluation(tmp_path, reidcore):
    transform = [{"name": "random-erasing", "probability": 0.9, "fill": "random"}]
    sets = {"name": "folder", "root": str(tmp_path / "toy"), "query_transform": transform}
    recipe = tiny_recipe(tmp_path, test=[sets])
    assert reidcore("run", recipe, "--set", "training.epochs=0", "-q")[0] == 0
    files = (tmp_path / "runs" / "toy" / "features").glob("*")
    before = {file.name: file.read_bytes() for file in files}
    for option in ("evaluation.batch=2", "input.workers=2", "run.seed=9"):
        for name in before:
            (tmp_path / "runs" / "toy" / "features" / name).unlink()
        assert reidcore("evaluate", tmp_path / "runs" / "toy", "--set", option)[0] == 0
        after = {file.name: file.read_bytes() for file in (tmp_path / "runs" / "toy" / "features").glob("*")}
        assert after == before, option


@pytest.mark.parametrize("verb", [["check", "--build"], ["run"]])
def test_transforms_that_mix_are_for_training_only(tmp_path, reidcore, verb):
    sets = {"name": "folder", "root": str(tmp_path / "toy"), "query_transform": [{"name": "random-patch"}]}
    status, _, err = reidcore(verb[0], tiny_recipe(tmp_path, test=[sets]), *verb[1:])
    assert status == 2
    assert "test 'folder': query_transform: a transform that mixes images of a batch is for training only" in err
    assert not (tmp_path / "runs").exists()


def test_a_part_chooses_on_held_out_identities(tmp_path, plugin, reidcore):
    seen = tmp_path / "seen.txt"
    sets = {"name": "folder", "root": str(tmp_path / "toy"), "postprocess": [{"name": "scaled", "seen": str(seen)}]}
    dark = {**sets, "label": "dark", "query_transform": [{"name": "black"}]}
    recipe = tiny_recipe(
        tmp_path,
        test=[sets, dark],
        sampler={"name": "identity-balanced", "identities": 2, "instances": 2},
        evaluation={"holdout": 0.34, "every": 2},
    )
    status, out, err = reidcore("run", recipe, "--plugin", plugin)
    assert status == 0, err
    assert "; chosen on held-out identities: scale = 0.25)" in err
    (identities, plain, gallery), (same, black, _) = (eval(line) for line in seen.read_text().splitlines())
    assert identities == same
    assert len(identities) == 2
    assert set(identities) < set(range(6))  # of the 6 to train on
    assert gallery == 12
    assert plain > 0 == black  # the held-out queries are transformed as the test's are
    events = [json.loads(line) for line in (tmp_path / "runs" / "toy" / "log.jsonl").read_text().splitlines()]
    assert [e["chosen"] for e in events if e["kind"] == "evaluation" and e["test"] == "dark"] == [{"scale": 0.25}]
    status, out, err = reidcore("evaluate", tmp_path / "runs" / "toy", "--plugin", plugin)
    assert status == 0, err
    assert "scale = 0.25" in " ".join(out.split())
    assert len(seen.read_text().splitlines()) == 4
    for override in ("evaluation.holdout=0.5", "run.seed=2"):
        status, _, err = reidcore("evaluate", tmp_path / "runs" / "toy", "--plugin", plugin, "--set", override)
        assert status == 2
        assert re.search(r"toy was trained on \d of these \d", err)


@pytest.mark.parametrize("verb", [["check", "--build"], ["run"]])
def test_a_part_that_chooses_wants_a_holdout(tmp_path, plugin, reidcore, verb):
    sets = {"name": "folder", "root": str(tmp_path / "toy"), "postprocess": [{"name": "scaled", "seen": "x"}]}
    status, _, err = reidcore(verb[0], tiny_recipe(tmp_path, test=[sets]), *verb[1:], "--plugin", plugin)
    assert status == 2
    assert "test 'folder': its post-processors choose on held-out training identities, and none are held out" in err
    assert "write holdout = 0.1 in [evaluation]" in err


def test_joined_queries_have_no_extras(tmp_path, write, reidcore):
    wants = write("wants.py", PLUGIN.replace('stage, needs = "rows", ()', 'stage, needs = "rows", ("cells",)'))
    sets = {"name": "folder", "root": str(tmp_path / "toy"), "postprocess": [{"name": "scaled", "seen": "x"}]}
    recipe = tiny_recipe(tmp_path, test=[{**sets, "protocol": "multi-query"}], evaluation={"holdout": 0.34})
    for verb in (["check", recipe, "--build"], ["run", recipe]):
        status, _, err = reidcore(*verb, "--plugin", wants)
        assert status == 2
        assert "Scaling needs the extras cells, which joint queries of the protocol multi-query do not have" in err
    assert not (tmp_path / "runs").exists()


def test_a_chain_that_lacks_extras_is_refused_before_training(tmp_path, write, reidcore):
    wants = write("wants.py", PLUGIN.replace('stage, needs = "rows", ()', 'stage, needs = "rows", ("cells",)'))
    sets = {"name": "folder", "root": str(tmp_path / "toy"), "postprocess": [{"name": "scaled", "seen": "x"}]}
    recipe = tiny_recipe(tmp_path, test=[sets], evaluation={"holdout": 0.34})
    status, _, err = reidcore("run", recipe, "--plugin", wants)
    assert status == 2
    assert "Scaling needs the extras cells, which the features do not have (they have: none)" in err
    assert not (tmp_path / "runs").exists()
