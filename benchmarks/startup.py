"""Seconds to list a set and check its headers, and from the command to a run's first step, with a warm file cache.

The files are JPEG of 256x128 in the `folder` form: a few hundred are drawn, the others are links to them. Each figure
is of a process of its own, with the start of Python. The last column is the time of cores: on a machine that does
nothing else, the clock shows less.

    python benchmarks/startup.py [--list 100000] [--train 30000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from reidcore.machine import describe

LINKS = 250
"""Names of a file."""

FIRST_STEP = """
import os, sys
import reidcore.loop
from reidcore.cli import main

reidcore.loop._accumulate = lambda *_: os._exit(0)
sys.exit(main(["run", *sys.argv[1:]]) or "there was no step")
"""


def draw(folder: Path, images: int) -> None:
    """Write the images of one split, four of each identity."""
    folder.mkdir()
    random = np.random.default_rng(0)
    original = Path()
    for number in range(images):
        file = folder / f"{number // 4:06d}_c{number % 2}_{number:07d}.jpg"
        if number % LINKS == 0:
            coarse = Image.fromarray(random.integers(0, 256, (16, 8, 3), dtype=np.uint8))
            coarse.resize((128, 256), Image.Resampling.BICUBIC).save(file, quality=90)
            original = file
        else:
            os.link(original, file)


def seconds(*command: str) -> tuple[float, float]:
    """Return how long a Python process takes, by the clock and of its cores."""
    began, used = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    ended = os.times()
    cores = ended.children_user + ended.children_system - used.children_user - used.children_system
    return time.perf_counter() - began, cores


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=int, default=100_000, help="images of the set that is listed")
    parser.add_argument("--train", type=int, default=30_000, help="images of the set that is trained on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    options = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        large, small = Path(place, "large"), Path(place, "small")
        for root, images in ((large, options.list), (small, options.train)):
            root.mkdir()
            draw(root / "train", images)
        recipe = Path(place, "recipe.toml")
        recipe.write_text(
            f'[run]\nname = "x"\noutput = "{place}"\n[[train]]\nname = "folder"\nroot = "{small}"\n'
            '[[transform]]\nname = "flip"\n[[transform]]\nname = "pad-crop"\n[[transform]]\nname = "random-erasing"\n'
            '[backbone]\nname = "resnet50"\nweights = "none"\n'
        )
        for number in range(options.rounds):
            listed = seconds("-m", "reidcore", "data", "folder", "--root", str(large), "-q")
            figures.setdefault(f"list {options.list} images and check their headers", []).append(listed)
            started = seconds("-c", FIRST_STEP, str(recipe), "-q", "--set", f"run.name=run{number}")
            figures.setdefault(f"start a run on {options.train} images", []).append(started)
    table = Table("seconds", "median", "lowest", "highest", "of cores")
    for name, pairs in figures.items():
        clock, cores = zip(*pairs, strict=True)
        shown = (statistics.median(clock), min(clock), max(clock), statistics.median(cores))
        table.add_row(name, *(f"{value:.1f}" for value in shown))
    machine = describe()
    console = Console()
    console.print(machine["machine"])
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "seconds": figures}))


if __name__ == "__main__":
    main()
