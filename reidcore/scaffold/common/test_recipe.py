"""The recipe trains and evaluates."""

from pathlib import Path

from reidcore.testing import run_cli

RECIPE = Path(__file__).parent.parent / "recipe.toml"


def test_the_recipe_trains_and_evaluates(tmp_path):
    done = run_cli("run", RECIPE, "--output", tmp_path, "--quiet")
    assert done.status == 0, done.err
    assert (tmp_path / "recipe" / "metrics.json").is_file()
