"""What several test files use: recipes as text, image folders in miniature, the command line in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidcore.cli import main


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
def reidcore(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line and returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """Return a `folder` data set: an identity is a colour; 6 to train on, 3 others to test; 2 cameras."""
    root = tmp_path / "toy"
    random = np.random.default_rng(0)
    for split, identities, images in (("train", range(6), 3), ("query", range(6, 9), 1), ("gallery", range(6, 9), 2)):
        (root / split).mkdir(parents=True)
        for identity in identities:
            colour = np.random.default_rng(identity).integers(0, 256, 3)
            for camera in (1, 2):
                for number in range(images):
                    pixels = np.clip(colour + random.normal(0, 20, (20, 12, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(root / split / f"{identity:04d}_c{camera}_{split}{number}.png")
    return root


@pytest.fixture
def toy_recipe(toy_folder: Path, write: Callable[..., Path]) -> Path:
    """Return a recipe that trains on the toy folder in a second or two."""
    return write(
        "toy.toml",
        f"""
[run]
output = "{toy_folder.parent / "runs"}"
device = "cpu"

[[train]]
name = "folder"
root = "{toy_folder}"

[[test]]
name = "folder"
root = "{toy_folder}"

[input]
height = 32
width = 16
workers = 0

[[transform]]
name = "flip"

[sampler]
name = "identity-balanced"
identities = 3
instances = 2

[backbone]
name = "resnet18"
base = 16
weights = "none"

[training]
epochs = 2
precision = "float32"
""",
    )
