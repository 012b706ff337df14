"""`[run] needs`: recipes that are run first."""

import json
import shutil

import pytest
import tomli
import tomli_w

from reidcore import loop
from reidcore.testing import toy_data


@pytest.fixture
def make(tmp_path):
    """Return a function that writes a recipe into tmp_path."""
    root = toy_data(tmp_path / "toy")

    def write(name, needs=(), **tables):
        recipe = {
            "run": {"output": str(tmp_path / "runs"), "device": "cpu", "needs": list(needs), **tables.pop("run", {})},
            "train": [{"name": "folder", "root": str(root)}],
            "test": [{"name": "folder", "root": str(root)}],
            "input": {"height": 32, "width": 16, "workers": 0},
            "sampler": {"name": "identity-balanced", "identities": 3, "instances": 2},
            "backbone": {"name": "resnet18", "base": 16, "weights": "none"},
            "training": {"epochs": 1, "precision": "float32"},
            **tables,
        }
        file = tmp_path / f"{name}.toml"
        file.write_text(tomli_w.dumps(recipe), encoding="utf-8")
        return file

    return write


def finished(tmp_path):
    files = (tmp_path / "runs").glob("*/metrics.json")
    return [file.parent.name for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]


def test_what_is_needed_is_run_first_and_once(tmp_path, make, reidcore, monkeypatch):
    make("teacher")
    make("middle", ["teacher.toml"], run={"init": str(tmp_path / "runs" / "teacher")})
    recipe = make("student", ["middle.toml", "teacher.toml"], run={"init": str(tmp_path / "runs" / "middle")})
    assert reidcore("check", recipe, "--build")[0] == 0
    assert not (tmp_path / "runs").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # needs are found from the recipe that names them
    status, _, err = reidcore("run", recipe)
    assert status == 0, err
    assert finished(tmp_path) == ["teacher", "middle", "student"]
    before = (tmp_path / "runs" / "teacher" / "metrics.json").stat().st_mtime_ns
    assert reidcore("run", recipe, "--set", "run.name=again", "-q")[0] == 0
    assert (tmp_path / "runs" / "teacher" / "metrics.json").stat().st_mtime_ns == before
    saved = tmp_path / "runs" / "again" / "recipe.toml"
    assert reidcore("check", saved) == (0, f"{saved}: no mistakes found\n", "")  # and from anywhere


def test_one_that_was_stopped_is_resumed_or_it_is_said_how(tmp_path, make, reidcore, monkeypatch):
    teacher = make("teacher", training={"epochs": 3, "precision": "float32"})
    recipe = make("student", ["teacher.toml"])
    assert reidcore("run", teacher, "-q", "--set", "run.name=whole")[0] == 0
    weights = (tmp_path / "runs" / "whole" / "model.safetensors").read_bytes()

    def stopping(run, update=loop._update):  # as Ctrl-C does
        update(run)
        run.interrupted = run.step == 3

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", stopping)
        status, _, err = reidcore("run", recipe)
    assert status == 2
    assert "stopped at step 3; go on with --resume" in err
    status, _, err = reidcore("run", recipe)
    assert status == 2
    assert "teacher: the run folder" in err
    assert "teacher exists; go on with it (--resume)" in err
    assert not (tmp_path / "runs" / "student").exists()
    assert reidcore("run", recipe, "--resume", "-q")[0] == 0
    events = [json.loads(line) for line in (tmp_path / "runs" / "teacher" / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "resume"] == [3]
    assert (tmp_path / "runs" / "teacher" / "model.safetensors").read_bytes() == weights
    assert finished(tmp_path) == ["whole", "teacher", "student"]


def test_mistakes_of_all_recipes_are_found_at_once(tmp_path, make, reidcore):
    make("teacher", input={"heigth": 3})
    recipe = make("student", ["teacher.toml", "nobody.toml"])
    for verb in ("check", "run"):
        status, _, err = reidcore(verb, recipe)
        assert status == 2
        assert f"{tmp_path / 'teacher.toml'}:" in err
        assert "unknown key; did you mean 'height'?" in err
        assert f"cannot read the recipe {tmp_path / 'nobody.toml'}: No such file or directory" in err
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_needs_itself_is_refused(tmp_path, make, reidcore):
    make("teacher", ["student.toml"])
    recipe = make("student", ["teacher.toml"])
    status, _, err = reidcore("check", recipe)
    assert status == 2
    assert "run.needs:" in err
    assert "needs this recipe in turn" in err


def test_what_cannot_work_is_said_before_the_first_one_trains(tmp_path, make, reidcore):
    make("teacher")
    recipe = make("student", ["teacher.toml"], head={"name": "bnneck", "classifier": "cosine"})
    status, _, err = reidcore("run", recipe)
    assert status == 2
    assert "student: loss.0: it needs linear logits" in err
    recipe = make("student", ["teacher.toml"], train=[{"name": "folder", "root": str(tmp_path / "nothing")}])
    status, _, err = reidcore("run", recipe)
    assert status == 2
    assert f"student: there is no folder {tmp_path / 'nothing'}" in err
    make("teacher", train=[{"name": "folder", "root": str(tmp_path / "nowhere")}])
    status, _, err = reidcore("run", make("student", ["teacher.toml"]))
    assert status == 2
    assert f"teacher: there is no folder {tmp_path / 'nowhere'}" in err
    make("teacher", run={"name": "same"})
    status, _, err = reidcore("run", make("student", ["teacher.toml"], run={"name": "same"}))
    assert status == 2
    assert "two recipes have the run folder" in err
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_needs_nothing(tmp_path, make, reidcore):
    teacher = make("teacher")
    make("middle", ["teacher.toml"])
    recipe = make("student", ["middle.toml"])
    assert reidcore("run", recipe, "-q")[0] == 0
    shutil.rmtree(tmp_path / "runs" / "teacher")
    teacher.unlink()
    assert reidcore("run", recipe, "--resume", "-q")[0] == 0
    assert reidcore("evaluate", tmp_path / "runs" / "student")[0] == 0
    make("teacher")
    assert reidcore("run", recipe, "--set", "run.name=again", "-q")[0] == 0
    assert finished(tmp_path) == ["middle", "student", "again"]


def test_needs_from_the_command_line_are_found_from_where_it_is_called(tmp_path, make, reidcore, monkeypatch):
    make("teacher")
    monkeypatch.chdir(tmp_path)
    assert (
        reidcore("run", make("student"), "--set", 'run.needs=["teacher.toml", "./toy/../teacher.toml"]', "-q")[0] == 0
    )
    assert finished(tmp_path) == ["teacher", "student"]
    saved = tomli.loads((tmp_path / "runs" / "student" / "recipe.toml").read_text())
    assert saved["run"]["needs"] == [str(tmp_path / "teacher.toml")] * 2


def test_seeds_share_what_they_need(tmp_path, make, reidcore):
    make("teacher")
    recipe = make("student", ["teacher.toml"])
    status, _, err = reidcore("run", recipe, "--seeds", "1,2", "-q")
    assert status == 0, err
    assert finished(tmp_path) == ["teacher", "student-seed1", "student-seed2"]


def test_the_filled_recipe_has_the_needs_with_their_places(tmp_path, make, reidcore):
    make("teacher")
    recipe = make("student", ["teacher.toml"])
    _, out, _ = reidcore("fill", recipe)
    assert tomli.loads(out)["run"]["needs"] == [str(tmp_path / "teacher.toml")]
    assert reidcore("run", recipe, "--set", "run.needs=[]", "-q")[0] == 0
    assert finished(tmp_path) == ["student"]
    assert json.loads((tmp_path / "runs" / "student" / "metrics.json").read_text())
