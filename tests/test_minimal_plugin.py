"""The minimal plugin, installed as a stranger would install it, used without a change in the core."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "examples" / "minimal-plugin"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Install the plugin into a folder of its own; return a function that runs the command line with it."""
    folder = tmp_path_factory.mktemp("minimal")
    source, site = folder / "source", folder / "site"
    shutil.copytree(PLUGIN, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    shutil.rmtree(source)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]

    def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "reidcore", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)

    return run_command


def test_its_parts_are_listed_with_their_plugin_and_version(run):
    records = json.loads(run("plugins", "--json", "--strict").stdout)
    (record,) = [record for record in records if record["name"] == "minimal"]
    assert (record["origin"], record["version"], record["status"]) == ("reid-minimal", "0.1.0", "ok")
    assert record["components"] == {"backbone": ["tiny-net"], "loss": ["spread"], "dataset": ["squares"]}


def test_its_options_are_shown(run):
    shown = run("components", "loss", "spread").stdout
    assert "minimal:spread (loss): Push the embeddings of a batch apart" in shown
    assert "how sharply near neighbours count" in shown


def test_its_recipe_trains_evaluates_and_is_loaded_again(run):
    result = run("run", PLUGIN / "recipe.toml", "--output", "out")
    assert result.returncode == 0, result.stderr
    assert "48 images of 8 identities" in result.stderr
    again = run("evaluate", "out/recipe")
    assert again.returncode == 0, again.stderr
    row = next(line for line in result.stdout.splitlines() if "squares" in line)
    assert row in again.stdout


def test_without_it_the_recipe_says_what_to_install(reidcore):
    status, _, err = reidcore("check", PLUGIN / "recipe.toml")
    assert status == 2
    assert "requires.0: reid-minimal is not installed" in err
    assert "to install: pip install 'reid-minimal'" in err
