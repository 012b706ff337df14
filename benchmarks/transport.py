"""Time and memory of the transport of mixture labels, at the size of MSMT17.

Random features around random centres, some of which are near to each other; `beyond` is the peak of memory
above what the process held with the scores.

    python benchmarks/transport.py [--images 33000] [--clusters 2000] [--sharpness 25] [--threads 2]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch.nn import functional as F

from reid_mlt.transport import sinkhorn

GIB = 2**20  # of what the system counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=33_000)
    parser.add_argument("--clusters", type=int, default=2_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--sharpness", type=float, default=25.0)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(options.clusters, options.dimension, generator=random)
    near = centres[::4] + 0.5 * torch.randn(len(centres[::4]), options.dimension, generator=random)
    centres[1::4] = near[: len(centres[1::4])]
    x = centres[torch.randint(options.clusters, (options.images,), generator=random)]
    x = F.normalize(x + torch.randn(x.shape, generator=random))
    scores = x @ F.normalize(centres).T
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    started = time.perf_counter()
    plan = sinkhorn(
        scores,
        torch.full((options.clusters,), 1 / options.clusters),
        sharpness=options.sharpness,
        tolerance=options.tolerance,
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    print(
        f"{options.images} x {options.clusters}, sharpness {options.sharpness:g}, {options.threads} threads: ", end=""
    )
    print(f"{seconds:.1f} s, {plan.iterations} iterations to {plan.error:.1e}; ", end="")
    print(f"peak {peak:.2f} GiB, {peak - held:.2f} beyond the scores")


if __name__ == "__main__":
    main()
