"""What several test files use: texts as files, image folders in miniature, the command line in this process."""

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from reidcore.testing import Done, run_cli, tiny_recipe, toy_data

# how fast examples are drawn says something of the machine, and of what else it does
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a text file below the test's folder."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write_file


@pytest.fixture
def reidcore() -> Callable[..., Done]:
    """Return a function that runs the command line and returns exit status, standard output and standard error."""
    return run_cli


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """Return a `folder` data set: an identity is a colour; 6 to train on, 3 others to test; 2 cameras."""
    return toy_data(tmp_path / "toy")


@pytest.fixture
def toy_recipe(toy_folder: Path) -> Path:
    """Return a recipe that trains on the toy folder in a second or two."""
    return tiny_recipe(toy_folder.parent)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch keeps downloaded weights: empty, and on a machine without a network."""

    import torch

    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "torch home" / "hub" / "checkpoints"
