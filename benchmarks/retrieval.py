"""Evaluation and re-ranking against the bare matrix product of the same size, in one run.

Clustered random features with the shape of a data set: identities are centres, images are these with noise, so that
neither everything nor nothing is found. Each measurement is a process of its own, so that its peak of memory is its
own. `beyond features` is the peak above what the process held when the features were there, `beyond torch` above what
it held after its imports; both are read from Linux's /proc. The figures to quote are the ratios: seconds over those
of the product that is named beside them.

    python benchmarks/retrieval.py [--shape market1501] [--threads 2] [--repeats 3] [--only evaluate ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reidcore.catalog import discover
from reidcore.retrieval import Features, Result, evaluate

SHAPES = {"market1501": (3_368, 15_913, 2_048), "msmt17": (11_659, 82_161, 2_048), "small": (500, 2_500, 512)}
CAMERAS = 6
METRICS = ("cmc", "map", "minp")
ROWS = 2_048  # of a block of the bare product, and of the features that are drawn at a time
GIB = 2**30


def draw(shape: tuple[int, int, int]) -> tuple[Features, Features]:
    """Return queries and gallery: about 25 images an identity, taken by 6 cameras."""
    queries, gallery, dimension = shape
    random = np.random.default_rng(0)
    identities = random.integers(0, max(1, (queries + gallery) // 25), queries + gallery)
    cameras = random.integers(0, CAMERAS, queries + gallery)
    # Cameras shift what they see, and images differ in how much of the identity they show: some are hard.
    centres, views = (
        random.standard_normal((count, dimension), np.float32) for count in (identities.max() + 1, CAMERAS)
    )
    sides = []
    for start, count in ((0, queries), (queries, gallery)):
        embeddings = np.empty((count, dimension), np.float32)
        for first in range(0, count, ROWS):
            rows = slice(start + first, start + min(first + ROWS, count))
            noise = random.standard_normal((rows.stop - rows.start, dimension), np.float32)
            level = random.uniform(2, 4, (len(noise), 1)).astype(np.float32)
            embeddings[first : first + len(noise)] = (
                centres[identities[rows]] + views[cameras[rows]] / 2 + level * noise
            )
        rows = slice(start, start + count)
        sides.append(Features(embeddings, identities[rows], cameras[rows]))
    return sides[0], sides[1]


def product(rows: np.ndarray, columns: np.ndarray) -> None:
    """Multiply in float32, in blocks that are dropped."""
    left, right = torch.from_numpy(rows), torch.from_numpy(columns)
    for above in left.split(ROWS):
        for beside in right.split(ROWS):
            above @ beside.T


def measures(query: Features, gallery: Features) -> dict[str, tuple[str, Callable[[], object]]]:
    """Return what can be measured: name -> the product it is compared with, and the work."""
    found: dict[str, tuple[str, Callable[[], object]]] = {
        "product": ("product", lambda: product(query.embeddings, gallery.embeddings)),
        "evaluate": ("product", lambda: evaluate(query, gallery, metrics=METRICS)),
        "evaluate, roc": ("product", lambda: evaluate(query, gallery, metrics=(*METRICS, "roc"))),
        "product of all": (
            "product of all",
            lambda: [
                product(one.embeddings, other.embeddings) for one in (query, gallery) for other in (query, gallery)
            ],
        ),
        "k-reciprocal": (
            "product of all",
            lambda: evaluate(query, gallery, metrics=METRICS, postprocess=["k-reciprocal"]),
        ),
    }
    if "roc" not in {component.name for component in discover().components("metric")}:
        del found["evaluate, roc"]
    return found


def memory(entry: str) -> int:
    """Return what this process holds ("VmRSS") or the most that it held ("VmHWM"), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * 1024
    raise LookupError(entry)


def measure(name: str, shape: tuple[int, int, int], repeats: int) -> None:
    """Print one measurement of this process, the fastest of some, as JSON."""
    torch.ones(8, 8) @ torch.ones(8, 8)  # starts the threads
    imported = memory("VmRSS")
    query, gallery = draw(shape)
    work = measures(query, gallery)[name][1]
    measures(*draw((100, 200, 16)))[name][1]()  # imports what it needs
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was held
    drawn = memory("VmRSS")
    seconds = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds = min(seconds, time.perf_counter() - started)
    most = memory("VmHWM")
    figures = {key: round(value, 4) for key, value in result.items()} if isinstance(result, Result) else {}
    print(json.dumps({"seconds": seconds, "features": most - drawn, "torch": most - imported, "figures": figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="market1501")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these; the products come by themselves")
    parser.add_argument("--repeats", type=int, default=3, help="of each, the fastest counts")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    if options.measure:
        measure(options.measure, shape, options.repeats)
        return
    queries, gallery, dimension = shape
    print(f"{options.shape}: {queries} x {gallery} x {dimension}, {platform.machine()} CPU, {options.threads} threads")
    print(f"| {'':<14} | seconds | ratio | of             | beyond features | beyond torch |")
    print(f"|{'-' * 16}|{'-' * 9}|{'-' * 7}|{'-' * 16}|{'-' * 17}|{'-' * 14}|")
    known = measures(*draw((1, 1, 1)))
    wanted = options.only or list(known)
    wanted = [name for name in known if name in wanted or name in {known[one][0] for one in wanted}]
    seconds: dict[str, float] = {}
    for name in wanted:
        command = [sys.executable, __file__, "--shape", options.shape, "--threads", str(options.threads)]
        command += ["--repeats", str(options.repeats)]
        done = subprocess.run([*command, "--measure", name], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        seconds[name] = found["seconds"]
        base = known[name][0]
        print(
            f"| {name:<14} | {found['seconds']:7.2f} | {found['seconds'] / seconds[base]:5.2f} | {base:<14} "
            f"| {found['features'] / GIB:11.2f} GiB | {found['torch'] / GIB:8.2f} GiB |",
            flush=True,
        )
        if found["figures"]:
            print("  " + ", ".join(f"{key} {value}" for key, value in found["figures"].items()), flush=True)


if __name__ == "__main__":
    main()
