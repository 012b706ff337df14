"""The recipes of the README have no mistakes."""

import re
from pathlib import Path

import pytest

from reidcore.cli import main

README = Path(__file__).parent.parent / "README.md"
RECIPES = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = README.parent.parent.parent / "examples"


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: re.search('\nname = "(.*)"', text)[1])
def test_a_recipe_has_no_mistakes(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if 'extends = "examples/' in text:
        if not EXAMPLES.is_dir():
            pytest.skip(f"the recipe extends one of {EXAMPLES}, which is not there")
        (tmp_path / "examples").symlink_to(EXAMPLES)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    status = main(["check", str(recipe), "--build"])
    captured = capsys.readouterr()
    assert (status, captured.out, captured.err) == (0, f"{recipe}: no mistakes found\n", "")


def test_there_is_a_recipe_for_market1501_and_a_small_one() -> None:
    assert len(RECIPES) == 2 and all("reid-resnest>=0.1" in text for text in RECIPES)
