"""The recipe of the README has no mistakes, and its table has all options."""

import re
from pathlib import Path

import attrs

from reid_mlflow import MLflow
from reidcore.testing import run_cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_recipe_has_no_mistakes(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    assert run_cli("check", recipe) == (0, f"{recipe}: no mistakes found\n", "")


def test_the_table_has_all_options():
    assert re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE) == [field.name for field in attrs.fields(MLflow)]
