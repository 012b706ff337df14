"""The recipes of this package, and a whole run of one in miniature."""

import json
from pathlib import Path

import pytest

from reidcore.api import evaluate_run
from reidcore.testing import run_cli

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_has_no_mistakes(recipe):
    assert run_cli("check", recipe, "--build") == (0, f"{recipe}: no mistakes found\n", "")


def test_one_run_gives_both_rows_and_their_difference(tmp_path):
    recipe = next(file for file in RECIPES if file.stem == "synthetic")
    small = ["run.name=small", f"run.output={tmp_path}", "training.epochs=1", "input.workers=0", "backbone.base=16"]
    small += ["train.0.identities=20", "train.0.images=2", "evaluation.holdout=0.2", "sampler.identities=4"]
    small += [f"test.{number}.{size}" for number in range(3) for size in ("identities=20", "images=2")]
    small += [f"{table}.test_identities=6" for table in ("train.0", "test.0", "test.1", "test.2")]
    done = run_cli("run", recipe, *(word for item in small for word in ("--set", item)))
    assert done.status == 0, done.err
    assert "; chosen on held-out identities: dsr blend = " in done.err
    metrics = json.loads((tmp_path / "small" / "metrics.json").read_text())
    assert set(metrics) == {"half", "half, dsr", "whole"}
    compared = json.loads(run_cli("compare", tmp_path / "small", "--json").out)
    found = compared["half"]["differences"]["half, dsr"]["rank1"]["difference"]
    assert found == pytest.approx(metrics["half, dsr"]["rank1"] - metrics["half"]["rank1"])
    again = evaluate_run(tmp_path / "small", ['test.1.postprocess=[{name="dsr", match="best", k=5, blend=1}]'])
    assert dict(again["half"]) == metrics["half"]
    assert dict(again["half, dsr"]) != metrics["half"]
