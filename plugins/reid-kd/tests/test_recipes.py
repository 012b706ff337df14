"""The recipes of this package, and a whole run of one in miniature."""

import json
from pathlib import Path

import pytest
import torch

from reidcore.assemble import assemble, read_data
from reidcore.checkpoint import WEIGHTS, save_tensors
from reidcore.loop import prepare
from reidcore.networks import RECIPE, build_model
from reidcore.recipe import fill, load_recipe
from reidcore.testing import run_cli, toy_data
from reidcore.types import Step

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_has_no_mistakes(recipe):
    assert run_cli("check", recipe, "--build") == (0, f"{recipe}: no mistakes found\n", "")


def test_a_student_learns_from_the_teacher_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = next(file for file in RECIPES if file.stem == "synthetic")
    sizes = ("identities=20", "images=2", "test_identities=6")
    small = ["training.epochs=1", "input.workers=0"]
    small += [f"{table}.0.{size}" for table in ("train", "test") for size in sizes]
    options = [word for item in small for word in ("--set", item)]
    teacher = recipe.with_name("synthetic-teacher.toml")
    assert run_cli("run", teacher, *options, "-q").status == 0  # a small one, so that the recipe's is not trained
    done = run_cli("run", recipe, *options)
    assert done.status == 0, done.err
    events = [json.loads(line) for line in Path("runs/synthetic-taught/log.jsonl").read_text().splitlines()]
    losses = next(event["losses"] for event in events if event["kind"] == "epoch")
    assert set(losses) == {"cross-entropy", "triplet", "kd-logits", "kd-pkt"}
    assert run_cli("compare", "runs/synthetic-teacher", "runs/synthetic-taught").status == 0


def test_the_published_recipe_takes_a_step(tmp_path):
    examples = Path(__file__).parents[3] / "examples"
    if not (examples / "kd-market1501.toml").is_file():
        pytest.skip("the examples of the project are not here")
    root = toy_data(tmp_path / "toy")
    small = [f"{table}.0.{key}" for table in ("train", "test") for key in ("name=folder", f"root={root}")]
    small += ["input.height=64", "input.width=32", "input.workers=0", "backbone.weights=none", "run.device=cpu"]
    small += ["sampler.identities=3", "sampler.instances=2"]
    teacher = load_recipe(examples / "kd-market1501-teacher.toml", overrides=small)
    (tmp_path / RECIPE).write_text(fill(teacher), encoding="utf-8")
    save_tensors(tmp_path / WEIGHTS, build_model(teacher.recipe, 6).state_dict(), {"classes": [0, 1, 2, 3, 4, 5]})
    taught = [f"loss.{position}.teacher={tmp_path}" for position in (2, 3)]
    loaded = load_recipe(examples / "kd-market1501.toml", overrides=[*small, *taught])
    run = assemble(loaded, read_data(loaded), tmp_path, lambda model, epoch: None)
    prepare(run)
    batch = next(iter(run.loaders["train"].batches(0)))
    losses = run.task.losses({"train": batch}, Step(0, 0))
    assert set(losses) == {"circle", "triplet", "kd-logits", "kd-overhaul"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in run.losses.parameters())
    assert run.model.backbone.conv1.weight.grad.abs().max() > 0
