"""Memory that embedding images from disk takes beyond the model, while it goes on: it has to stay what it is.

Counted is what this process and its loader processes have in main memory, what they share once (Linux only). The
network is a small one, since it is what reads and keeps images that is measured; the files are larger than its input.

    python benchmarks/embedding.py [--images 8000] [--height 600] [--width 300] [--workers N] [--data DIR]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reidcore import load_recipe
from reidcore.api import Embedder
from reidcore.assemble import make_evaluator
from reidcore.builtin.modules.datasets import find_images
from reidcore.machine import describe
from reidcore.networks import build_model
from reidcore.types import Sample

MIB = 2**20


def draw(folder: Path, images: int, height: int, width: int) -> None:
    """Write JPEG files: a few are drawn, the others are links to them."""
    random = np.random.default_rng(0)
    for number in range(images):
        file = folder / f"{number:07d}.jpg"
        if number < 16:
            coarse = Image.fromarray(random.integers(0, 256, (16, 8, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)
        else:
            os.link(folder / f"{number % 16:07d}.jpg", file)


def memory() -> int:
    """Return the bytes that this process and its children have in main memory."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in (str(os.getpid()), *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    """Embed, and print the memory at each tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000, help="files to draw")
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--data", type=Path, help="a folder of images, instead of drawn ones")
    options = parser.parse_args()
    inputs = {} if options.workers is None else {"workers": options.workers}
    recipe = load_recipe(
        {
            "run": {"name": "x", "device": "cpu"},
            "train": [{"name": "synthetic"}],
            "input": inputs,
            "backbone": {"name": "resnet18", "base": 8, "weights": "none"},
        }
    ).recipe
    torch.manual_seed(0)
    model = build_model(recipe, classes=2).eval()
    embedder = Embedder(model, make_evaluator(recipe), model.dim, "")
    peak, over = 0, threading.Event()
    with tempfile.TemporaryDirectory() as place:
        if options.data is None:
            draw(Path(place), options.images, options.height, options.width)
        samples = [Sample(file) for file in find_images([options.data or Path(place)])]
        before = memory()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.2):
                peak = max(peak, memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began, tenth = time.perf_counter(), 0
        print(describe()["machine"])

        def done(count: int) -> None:
            nonlocal tenth
            if count * 10 // len(samples) > tenth:
                tenth = count * 10 // len(samples)
                seconds = time.perf_counter() - began
                print(f"{count} images, {seconds:.0f} s: at most {(peak - before) / MIB:.0f} MiB more", flush=True)

        try:
            with tempfile.TemporaryDirectory() as output:
                embedder.write(samples, Path(output) / "embeddings", done)
        finally:
            over.set()
            watcher.join()


if __name__ == "__main__":
    main()
