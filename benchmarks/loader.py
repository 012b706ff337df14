"""Images per second of the input pipeline, against a plain Dataset and DataLoader on the same files and cores.

Plainly means: Pillow's open and convert, torchvision's transforms, a DataLoader with as many processes; once with its
float32 images, as in torchvision's tutorials, and once with uint8 ones that a network would normalise, as ours does.
All flip, pad and crop, and erase at random. Ours is timed in the first epoch, in which images are read and kept, and in
later ones, in which they are in memory. The four take turns, and everything runs at the lowest priority, as our loader
processes always do. The figures to quote are the ratios, of medians over the rounds.

    python benchmarks/loader.py [--images 3000] [--rounds 5] [--workers N] [--data DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from reidcore.assemble import keep_freed_memory
from reidcore.builtin.modules.samplers import IdentityBalanced
from reidcore.builtin.modules.transforms import Flip, PadCrop, RandomErasing, Resize
from reidcore.data import ImageCache, Loader, cache_room
from reidcore.data.loader import worker_count
from reidcore.machine import describe
from reidcore.types import ALONE, Sample, Stream

SIZE = (256, 128)
INSTANCES = 4


def draw(folder: Path, images: int) -> None:
    """Write JPEG files of 256x128 with some texture, four of each identity: about 14 kB each."""
    random = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(random.integers(0, 256, (16, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + random.integers(-12, 13, (*SIZE, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number // INSTANCES:05d}_c{number % 2}_{number:06d}.jpg", quality=90)


class PlainData(Dataset[Any]):
    """The files, with torchvision's transforms."""

    def __init__(self, files: list[Path], floats: bool) -> None:
        self.files = files
        resized = [v2.PILToTensor(), v2.Resize(SIZE, antialias=True)]
        augment = [v2.RandomHorizontalFlip(), v2.Pad(10), v2.RandomCrop(SIZE)]
        convert = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        self.transform = v2.Compose([*resized, *augment, *(convert if floats else []), v2.RandomErasing()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), index


def make_ours(files: list[Path], batch: int, workers: int, room: int) -> Loader:
    """Return reidcore's loader, with nothing in its cache."""
    samples = [Sample(file, number // INSTANCES, number % 2) for number, file in enumerate(files)]
    labels = np.array([sample.identity for sample in samples])
    cameras = np.array([sample.camera for sample in samples])
    pipeline = [Resize(*SIZE), Flip(0.5), PadCrop(*SIZE, 10, 0), RandomErasing(0.5, (0.02, 0.33), (0.3, 3.3), "mean")]
    return Loader(
        Stream(samples, labels),
        IdentityBalanced(labels, cameras, batch // INSTANCES, INSTANCES, 0),
        pipeline,
        size=SIZE,
        seed=0,
        workers=workers,
        device=torch.device("cpu"),
        world=ALONE,
        cache=ImageCache(samples, room),
    )


def rate(batches: Callable[[], Iterable[Any]], count: Callable[[Any], int]) -> float:
    """Return images a second of an epoch, with the start of its processes."""
    began = time.perf_counter()
    return sum(count(batch) for batch in batches()) / (time.perf_counter() - began)


def measure(files: list[Path], batch: int, workers: int, rounds: int) -> dict[str, list[float]]:
    """Return the images a second of each pipeline in each round."""
    rates: dict[str, list[float]] = {}
    plain = {
        name: DataLoader(PlainData(files, floats), batch, True, num_workers=workers, persistent_workers=workers > 0)
        for name, floats in (("plain, float32", True), ("plain, uint8", False))
    }
    for loader in plain.values():  # their processes start before they are timed
        next(iter(loader))
    for _ in range(rounds):
        for name, loader in plain.items():
            rates.setdefault(name, []).append(rate(loader.__iter__, lambda item: len(item[1])))
        ours = make_ours(files, batch, workers, cache_room(float("inf"), 1))
        for name, epoch in (("reidcore, first epoch", 0), ("reidcore, later epochs", 1)):
            rates.setdefault(name, []).append(rate(partial(ours.batches, epoch), lambda item: len(item.labels)))
    return rates


def main() -> None:
    """Measure in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="files to draw, or to take at most of --data")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=worker_count(None))
    parser.add_argument("--data", type=Path, help="a folder of images, instead of drawn ones")
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    options = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(19)
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            draw(Path(folder), options.images)
        files = sorted(file for file in (options.data or Path(folder)).rglob("*") if file.is_file())[: options.images]
        rates = measure(files, options.batch, options.workers, options.rounds)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    base = middle["plain, float32"]
    table = Table("images/s", "median", "lowest", "highest", "ratio", title=f"{len(files)} files")
    for name, values in rates.items():
        row = (middle[name], min(values), max(values))
        table.add_row(name, *(f"{value:.0f}" for value in row), f"{middle[name] / base:.2f}")
    machine = describe()
    console = Console()
    console.print(f"{machine['machine']}, {options.workers} loader processes, torch {torch.__version__}")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "workers": options.workers, "images/s": rates}))


if __name__ == "__main__":
    main()
