"""One million 256-d vectors: how long `reidcore index` takes, how much memory, and how well and fast it is searched.

The vectors are clustered as identities are: a random direction each, and 20 to 40 images around it. An image's noise is
as long as `--noise` times the direction; at 0.7 two images of an identity have a cosine of 0.67, and others come
up to 0.3. Queries are further images of these identities, and recall@10 is the share of their 10 exact nearest that
the index finds.

    python benchmarks/search.py [--count 1000000] [--dim 256] [--noise 0.7] [--threads 2] [--kind KIND]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from reidcore.retrieval.index import Index
from reidcore.retrieval.store import EmbeddingWriter, read_embeddings

QUERIES, K = 1000, 10


def images(centres: NDArray[np.float32], identities: NDArray[np.int64], noise: float, random: np.random.Generator):
    """Return an (n, D) image of each of the identities."""
    around = random.standard_normal((len(identities), centres.shape[1]), np.float32)
    return centres[identities] + around * np.float32(noise)


def write(file: Path, count: int, dim: int, noise: float) -> NDArray[np.float32]:
    """Write the embedding file in blocks; return the queries."""
    random = np.random.default_rng(0)
    sizes = random.integers(20, 41, count // 20)
    identities = random.permutation(np.repeat(np.arange(len(sizes)), sizes)[:count])
    centres = random.standard_normal((identities.max() + 1, dim), np.float32)
    paths = [f"photos/{identity:06d}_c{row % 8}_{row:07d}.jpg" for row, identity in enumerate(identities)]
    with EmbeddingWriter(file, identities, np.arange(count) % 8, paths, dim, fingerprint="synthetic") as writer:
        for start in range(0, count, 50_000):
            writer.add(images(centres, identities[start : start + 50_000], noise, random))
    return images(centres, random.choice(identities, QUERIES), noise, random)


def exact(file: Path, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the (Q, K) rows of the nearest by cosine, by comparing with all."""
    vectors = read_embeddings(file).features.embeddings
    best, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), 50_000):
        block = vectors[start : start + 50_000]
        cosines = queries @ (block / np.linalg.norm(block, axis=1, keepdims=True)).T
        near = np.argpartition(-cosines, K, axis=1)[:, :K]
        best = np.hstack([best, np.take_along_axis(cosines, near, axis=1)])
        rows = np.hstack([rows, near + start])
    return np.take_along_axis(rows, np.argsort(-best, axis=1)[:, :K], axis=1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--noise", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", help="as in `reidcore index`")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        file, folder = Path(name) / "embeddings.safetensors", Path(name) / "index"
        queries = write(file, options.count, options.dim, options.noise)
        command = [sys.executable, "-m", "reidcore", "index", str(file), "-o", str(folder)]
        start = time.perf_counter()
        subprocess.run(
            [*command, *(["--kind", options.kind] if options.kind else [])],
            env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
            check=True,
        )
        built = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        size = sum(item.stat().st_size for item in folder.iterdir()) / 2**20
        index = Index.open(folder)
        index.search(queries[:1])
        start = time.perf_counter()
        found = np.concatenate([index.search(query[None], K)[0] for query in queries])
        single = time.perf_counter() - start
        start = time.perf_counter()
        index.search(queries, K)
        batch = time.perf_counter() - start
        true = exact(file, queries)
        recall = np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, true, strict=True)])
    print(f"{index.meta.kind}, {options.count} vectors of {options.dim} dimensions, {options.threads} threads")
    print(f"build                 {built:.0f} s, peak memory {memory:.2f} GiB, {size:.0f} MiB on the disk")
    print(f"recall@{K}             {recall:.3f} of {QUERIES} queries that are not in the index")
    print(f"one query at a time   {1000 * single / QUERIES:.2f} ms a query")
    print(f"all queries at once   {1000 * batch / QUERIES:.2f} ms a query")


if __name__ == "__main__":
    main()
