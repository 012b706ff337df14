"""`[run] needs`: recipes that are run first."""

import json

import pytest
import tomli
import tomli_w

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


def test_one_that_was_stopped_is_resumed_or_it_is_said_how(tmp_path, make, reidcore):
    teacher = make("teacher", training={"epochs": 2, "precision": "float32"})
    recipe = make("student", ["teacher.toml"])
    assert reidcore("run", teacher, "-q")[0] == 0
    weights = (tmp_path / "runs" / "teacher" / "model.safetensors").read_bytes()
    for name in ("metrics.json", "model.safetensors"):
        (tmp_path / "runs" / "teacher" / name).unlink()
    status, _, err = reidcore("run", recipe)
    assert status == 2
    assert "the run folder" in err
    assert "teacher exists; go on with it (--resume)" in err
    assert not (tmp_path / "runs" / "student").exists()
    assert reidcore("run", recipe, "--resume", "-q")[0] == 0
    assert (tmp_path / "runs" / "teacher" / "model.safetensors").read_bytes() == weights
    assert finished(tmp_path) == ["teacher", "student"]


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
    assert "linear logits" in err
    recipe = make("student", ["teacher.toml"], train=[{"name": "folder", "root": str(tmp_path / "nothing")}])
    status, _, err = reidcore("run", recipe)
    assert status == 2
    assert "nothing" in err
    assert not (tmp_path / "runs").exists()


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
