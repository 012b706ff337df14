"""Deep spatial reconstruction against the loop over pairs of the published formulation, in one run.

All pairs of 300 queries and 300 gallery images with 110 cells of 2,048 channels. The loop has its cells in float32 and
the projector of each gallery image, (Y^T Y + ridge)^-1 Y^T, computed before the clock starts; it multiplies twice a
pair. reid-dsr starts from cells in half precision, and all that it computes counts. `beyond` is the peak of memory
above what the process held when the cells were there, read from Linux's /proc.

    python benchmarks/dsr.py [--queries 300] [--gallery 300] [--cells 110] [--channels 2048] [--k 300] [--threads 2]

With a smaller k the time a pair is that of the k nearest images of each query, and still that of all pairs in the loop.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reid_dsr.rescoring import Rescoring
from reidcore.retrieval import Features, Problem
from reidcore.retrieval.postprocess import Final

RIDGE = 1e-3
GIB = 2**30


def draw(images: int, cells: int, channels: int, seed: int) -> Features:
    """Return images whose cells have much in common, as max-pooled windows do."""
    random = np.random.default_rng(seed)
    drawn = np.empty((images, cells, channels), np.float16)
    for image in drawn:
        values = random.random((cells, channels), np.float32) ** 3 + random.random(channels, np.float32)
        image[:] = values / np.linalg.norm(values, axis=1, keepdims=True)
    weights = random.random((images, cells), np.float32)
    weights /= weights.sum(1, keepdims=True)
    labels = np.arange(images)
    embeddings = random.standard_normal((images, 64), np.float32)
    return Features(embeddings, labels, labels % 2, extras={"cells": drawn, "weights": weights})


def loop(query: Features, gallery: Features) -> Callable[[], torch.Tensor]:
    """Return the published computation, with everything that does not depend on pairs done."""
    columns = [
        [torch.from_numpy(x.astype(np.float32)).T.contiguous() for x in s.extras["cells"]] for s in (query, gallery)
    ]
    weights = torch.from_numpy(query.extras["weights"])
    projectors = []
    for y in columns[1]:
        gram = y.double().T @ y.double() + RIDGE * torch.eye(y.shape[1], dtype=torch.float64)
        projectors.append((torch.linalg.inv(gram) @ y.double().T).float())

    def work() -> torch.Tensor:
        found = torch.empty(len(query), len(gallery))
        for q, x in enumerate(columns[0]):
            for g, (y, projector) in enumerate(zip(columns[1], projectors, strict=True)):
                found[q, g] = ((y @ (projector @ x) - x).norm(dim=0) * weights[q]).sum()
        return found

    return work


def memory(entry: str) -> int:
    """Return what this process holds ("VmRSS") or the most that it held ("VmHWM"), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("queries", 300), ("gallery", 300), ("cells", 110), ("channels", 2048), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--k", type=int, help="images that a query is compared with (default: all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    query = draw(options.queries, options.cells, options.channels, 0)
    gallery = draw(options.gallery, options.cells, options.channels, 1)
    problem = Problem(query, gallery)
    k = min(options.k or options.gallery, options.gallery)
    part = Rescoring(k=k, blend=1.0, ridge=RIDGE)

    def ours() -> torch.Tensor:
        return torch.cat([torch.from_numpy(found) for _, found in Final.of(problem, [part]).blocks()])

    small = [draw(3, options.cells, options.channels, seed) for seed in (2, 3)]
    for _ in Final.of(Problem(*small), [part]).blocks():  # imports what it needs, and starts the threads
        pass
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was held
    held = memory("VmRSS")
    best, found = timed(ours)
    beyond = memory("VmHWM") - held
    published = loop(query, gallery)
    slow, expected = timed(published)
    for _ in range(options.repeats - 1):
        best, slow = min(best, timed(ours)[0]), min(slow, timed(published)[0])
    pairs, compared = options.queries * options.gallery, options.queries * k
    wanted = found < 1  # the others are not compared
    print(
        f"{options.queries} x {options.gallery} images, {options.cells} cells of {options.channels} channels, ", end=""
    )
    print(f"{platform.machine()} CPU, {options.threads} threads")
    print(f"loop over pairs   {slow:7.1f} s  {slow / pairs * 1e3:.3f} ms a pair")
    print(f"reid-dsr          {best:7.1f} s  {best / compared * 1e3:.3f} ms a pair")
    ratio, difference = slow / pairs / (best / compared), float((found - expected)[wanted].abs().max())
    print(f"ratio {ratio:.2f} a pair, largest difference {difference:.1e}, ", end="")
    print(f"{beyond / GIB:.2f} GiB beyond the stored cells")


if __name__ == "__main__":
    main()
