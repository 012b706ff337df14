"""The minimal plugin, installed as a stranger would install it, used without a change in the core."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reidcore.testing import run_cli, tiny_recipe

PLUGIN = Path(__file__).parent.parent / "examples" / "minimal-plugin"
CONTRACT = 'from reidcore.testing import contract\n\ntest_contract = contract("smoothmax")\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Install the plugin into a folder of its own, `site`, and write a recipe that needs it."""
    folder = tmp_path_factory.mktemp("minimal")
    source = folder / "source"
    shutil.copytree(PLUGIN, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(source)], check=True)
    shutil.rmtree(source)
    tiny_recipe(folder, requires=["reid-smoothmax"], aggregator={"name": "smooth-max"})
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Return a function that runs a module of Python with the plugin."""
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]

    def run_module(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)

    return run_module


def test_it_is_under_30_lines():
    lines = [line for name in ("pyproject.toml", "reid_smoothmax.py") for line in (PLUGIN / name).open()]
    assert sum(bool(line.strip()) for line in lines) < 30


def test_it_is_listed_with_its_version_and_its_part(run):
    records = json.loads(run("reidcore", "plugins", "--json", "--strict").stdout)
    (record,) = [record for record in records if record["name"] == "smoothmax"]
    assert (record["origin"], record["version"], record["status"]) == ("reid-smoothmax", "0.1.0", "ok")
    assert record["components"] == {"aggregator": ["smooth-max"]}
    shown = run("reidcore", "components", "aggregator", "smooth-max").stdout
    assert "smoothmax:smooth-max (aggregator): Smooth max pooling of the last map" in shown


def test_it_keeps_the_contract(run, folder):
    (folder / "test_contract.py").write_text(CONTRACT)
    done = run("pytest", "-q", "-p", "no:cacheprovider", "test_contract.py")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and "failed" not in done.stdout


def test_its_recipe_trains_evaluates_and_is_loaded_again(run, folder):
    result = run("reidcore", "run", "toy.toml")
    assert result.returncode == 0, result.stderr
    again = run("reidcore", "evaluate", folder / "runs" / "toy")
    assert again.returncode == 0, again.stderr
    row = next(line for line in result.stdout.splitlines() if "folder" in line)
    assert row in again.stdout


def test_without_it_the_recipe_says_what_to_install(folder):
    status, _, err = run_cli("check", folder / "toy.toml")
    assert status == 2
    assert "requires.0: reid-smoothmax is not installed" in err
    assert "to install: pip install 'reid-smoothmax'" in err
