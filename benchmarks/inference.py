"""Images a second and mAP of a trained run, in torch and by each exported file, in one process run.

Every way computes the embeddings of the same uint8 images in memory; the ways take turns, and the median counts. The
figure to quote is the ratio to ONNX Runtime in float32.

    python benchmarks/inference.py RUN [--batches 1 32] [--rounds 9] [--set KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from reidcore.api import evaluate_run, export_run
from reidcore.assemble import read_data
from reidcore.builtin.modules.transforms import Resize
from reidcore.catalog import discover
from reidcore.data import read_image
from reidcore.errors import ReidError
from reidcore.export import open_artifact
from reidcore.networks import load_trained

EXPORTED = (("onnx", "float32"), ("onnx", "int8"), ("openvino", "float32"), ("openvino", "int8"), ("caffe", ""))


def in_torch(model: torch.nn.Module, precision: torch.dtype) -> Callable[[np.ndarray], object]:
    """Return what computes embeddings by torch."""

    def run(images: np.ndarray) -> object:
        autocast = torch.autocast("cpu", precision) if precision != torch.float32 else nullcontext()
        with torch.inference_mode(), autocast:
            return model(torch.from_numpy(images).permute(0, 3, 1, 2)).embedding

    return run


def measure(ways: dict[str, Callable[[np.ndarray], object]], images: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the images a second of each way: the median over `rounds` turns of half a second.

    Between turns there is a pause, since engines keep their threads awake for a while.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(0.1)
            way(images)
            started, count = time.perf_counter(), 0
            while (passed := time.perf_counter() - started) < 0.5:
                way(images)
                count += len(images)
            rates[name].append(count / passed)
    return {name: statistics.median(found) for name, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()

    model, loaded, _ = load_trained(options.run, overrides=options.set)
    samples = read_data(loaded).train.samples
    size = (loaded.recipe.input.height, loaded.recipe.input.width)
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, max(options.batches), dtype=int)]
    images = np.stack([Resize(*size)(read_image(sample)).permute(1, 2, 0).numpy() for sample in chosen])

    ways: dict[str, Callable[[np.ndarray], object]] = {}
    scores: dict[str, float] = {}
    for precision in (torch.float32, torch.bfloat16):
        name = f"torch {str(precision).removeprefix('torch.')}"
        ways[name] = in_torch(model.eval(), precision)
        found = evaluate_run(options.run, [*options.set, f"training.precision={name.split()[1]}"])
        scores[name] = next(iter(found.values()))["mAP"]
    for exporter, precision in EXPORTED:
        try:
            given = [f"precision={precision}"] if precision else []
            file = export_run(options.run, exporter, given, overrides=options.set).files[0]
        except ReidError as error:
            print(f"{exporter}: {error}")
            continue
        name = f"{exporter} {precision}".strip()
        ways[name] = open_artifact(file, discover()).run
        scores[name] = next(iter(evaluate_run(options.run, options.set, artifact=file).values()))["mAP"]

    rates = {
        (name, batch): rate
        for batch in options.batches
        for name, rate in measure(ways, images[:batch], options.rounds).items()
    }
    heads = [head for batch in options.batches for head in (f"images/s, batch {batch}", "ratio")]
    table = Table(
        "",
        "mAP",
        *heads,
        title=f"{size[0]}x{size[1]}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        title_justify="left",
    )
    for name in ways:
        cells = []
        for batch in options.batches:
            rate = rates[name, batch]
            cells += [f"{rate:.0f}", f"{rate / rates['onnx float32', batch]:.2f}"]
        table.add_row(name, f"{scores[name]:.1%}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
