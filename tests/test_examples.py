"""The recipes that come with the project."""

from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))


@pytest.mark.parametrize("recipe", EXAMPLES, ids=lambda file: file.name)
def test_an_example_has_no_mistakes(recipe, reidcore):
    status, out, err = reidcore("check", recipe, "--build")
    assert (status, out, err) == (0, f"{recipe}: no mistakes found\n", "")


def test_the_quickstart_runs(tmp_path, reidcore):
    recipe = next(file for file in EXAMPLES if file.name == "quickstart.toml")
    small = ["training.epochs=1", "test.0.identities=32", "train.0.identities=32", "test.0.test_identities=4"]
    small += ["input.height=32", "input.width=16", "train.0.images=2", "test.0.images=2", "input.workers=0"]
    sets = [word for item in small for word in ("--set", item)]
    status, out, err = reidcore("run", recipe, "--output", tmp_path, *sets)
    assert status == 0, err
    assert "synthetic, before training" in out
    assert "synthetic, after training" in out
