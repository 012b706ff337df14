"""`reidcore new-plugin`: what it writes is in good form; `make test-packages` installs it and runs its tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reidcore.errors import ReidError
from reidcore.kinds import KINDS
from reidcore.scaffold import new_plugin
from reidcore.testing import run_cli


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a new package of each kind."""
    folder = tmp_path_factory.mktemp("packages")
    return [new_plugin(f"reid-my-{kind}", kind, folder) for kind in KINDS]


def test_every_package_is_in_good_form(packages):
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if ruff is None:
        pytest.skip("ruff is not installed")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([ruff, *command, *map(str, packages)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_name_is_everywhere(packages):
    loss = packages[list(KINDS).index("loss")]
    texts = {file.relative_to(loss): file.read_text() for file in loss.rglob("*") if file.is_file()}
    assert {str(name) for name in texts} == {
        ".github/workflows/test.yml",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "recipe.toml",
        "reid_my_loss/__init__.py",
        "reid_my_loss/loss.py",
        "tests/test_contract.py",
        "tests/test_recipe.py",
    }
    assert not [name for name, text in texts.items() if "example" in text.lower()]
    assert 'name = "my-loss"' in texts[Path("recipe.toml")]
    assert "class MyLoss:" in texts[Path("reid_my_loss/__init__.py")]
    assert 'my-loss = "reid_my_loss"' in texts[Path("pyproject.toml")]


def test_the_command_says_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run_cli("new-plugin", "reid-own", "--kind", "loss")
    assert status == 0 and "cd reid-own\n" in out
    assert 'contract("own")' in (tmp_path / "reid-own" / "tests" / "test_contract.py").read_text()
    status, _, err = run_cli("new-plugin", "reid-own", "--kind", "loss")
    assert (status, err) == (2, "reid-own exists; choose another name, or remove it\n")


@pytest.mark.parametrize("name", ["Reid-Own", "reid own", "../reid-own", "reid", "reid-1st", "reid--own", "torch"])
def test_a_name_that_is_none_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_cli("new-plugin", name, "--kind", "loss")
    assert status == 2 and "expected a package's name that begins with 'reid-', such as reid-loss" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["reid-triplet", "reid-core", "reid-none", "reid-true"])
def test_a_name_that_is_taken_is_refused(name, tmp_path):
    with pytest.raises(ReidError, match=f"choose another one than {name}"):
        new_plugin(name, "loss", tmp_path)


def test_a_name_that_holds_the_templates_own_is_no_trouble(tmp_path):
    package = new_plugin("reid-an-example", "loss", tmp_path)
    assert 'Component(name="an-example", config=AnExample)' in (package / "reid_an_example" / "__init__.py").read_text()
    assert 'name = "an-example"' in (package / "recipe.toml").read_text()
