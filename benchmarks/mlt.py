"""Adaptation to a target without labels: five ways in one table, with the same network, batches and epochs.

- direct: the network that was trained on the source
- plain: it is trained on the target's clusters, of features as they are (cluster-and-train, adapt_norm and
  centre_cameras off)
- cluster: the same with the features that mlt clusters
- mlt: mixture label transport
- labels: it is trained on the labels of source and target, which is what could be had at best

Without `--data` drawn people, in a street and at night, by `plugins/reid-mlt/recipes/synthetic.toml`. With a folder of
images, by `recipes/folder.toml`: the source is its train/, the target all others, of whose identities every other one
is adapted to, without its label, and the others are tested. `--set` is handed to all runs.

    python benchmarks/mlt.py [--data DIR] [--seeds 1 2 3] [--output DIR] [--set KEY=VALUE ...]

Differences are means over the seeds, with the interval of `reidcore compare` over the test's identities: all seeds are
resampled alike.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from tempfile import mkdtemp

import numpy as np

from reidcore.api import run
from reidcore.builtin.modules.datasets import folder
from reidcore.builtin.modules.synthetic import Figure
from reidcore.recipe import load_recipe
from reidcore.results import load_results
from reidcore.retrieval.bootstrap import differences
from reidcore.retrieval.evaluation import Result
from reidcore.types import Sample

RECIPES = Path(__file__).parent.parent / "plugins" / "reid-mlt" / "recipes"
WAYS = ("direct", "plain", "cluster", "mlt", "labels")


def halve(data: Path, file: Path) -> None:
    """Write a table of the target: half of the test identities to adapt to, the others as they are."""
    splits = folder(data)
    identities = sorted({sample.identity for sample in splits.gallery})
    adapted = set(identities[::2])
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "identity", "camera", "split"])

        def write(samples: Sequence[Sample], split: str) -> None:
            for sample in samples:
                to = "train" if sample.identity in adapted else split
                writer.writerow([Path(str(sample.image)).resolve(), sample.identity, sample.camera, to])

        write(splits.query, "query")
        write(splits.gallery, "gallery")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/, query/ and gallery/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--output", type=Path, help="folder of the run folders (default: a new one)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    place = options.output or Path(mkdtemp(prefix="mlt-"))
    place.mkdir(parents=True, exist_ok=True)
    name, data = "synthetic", []
    if options.data:
        table = place / "target.csv"
        halve(options.data, table)
        name = "folder"
        data = [f"train.0.root={options.data}", "test.0.name=csv", f"test.0.file={table}"]
    source, adapted = (RECIPES / f"{name}{ending}.toml" for ending in ("-source", ""))
    target = [f"train.1.{key.removeprefix('test.0.')}" for key in data if key.startswith("test.0")]
    tasks = {
        "plain": ["task.name=cluster-and-train", "task.adapt_norm=false", "task.centre_cameras=false"],
        "cluster": ["task.name=cluster-and-train"],
        "mlt": [],
        "labels": ["task.name=train", "train.1.role=source"],
    }

    def folder_of(way: str, seed: int) -> Path:
        return place / f"{way}-{seed}"

    Figure.open = cache(Figure.open)  # type: ignore[method-assign]  # drawing takes longer than the rest of a step
    for seed in options.seeds:
        for way in options.ways:
            if (folder_of(way, seed) / "metrics.json").is_file():
                continue
            common = [f"run.name={way}-{seed}", f"run.output={place}", f"run.seed={seed}", *data, *options.set]
            if way == "direct":
                recipe = load_recipe(source, overrides=common)
            else:
                init = ["run.needs=[]", f"run.init={folder_of('direct', seed)}"]
                recipe = load_recipe(adapted, overrides=[*common, *target, *init, *tasks[way]])
            done = run(recipe)
            print(f"{way}, seed {seed}: {dict(next(iter(done.metrics.values())))}", flush=True)
    found = {way: [load_results(folder_of(way, seed)) for seed in options.seeds] for way in options.ways}
    results = {way: [next(iter(tests.values())) for tests in seeds] for way, seeds in found.items()}
    print(f"\n{'':10}{'mAP':>14}{'rank-1':>14}   mAP above others: mean of the seeds (interval; by seed)")
    for way in options.ways:
        columns = "".join(f"{spread([100 * one[name] for one in results[way]]):>14}" for name in ("mAP", "rank1"))
        others = [base for base in ("direct", "plain", "cluster") if base in results and base != way]
        others = [base for base in others if WAYS.index(base) < WAYS.index(way)]
        print(f"{way:10}{columns}   " + "; ".join(f"{b} {difference(results[b], results[way])}" for b in others))


def difference(base: Sequence[Result], other: Sequence[Result]) -> str:
    """Return how much the mAP differs, over the same seeds: the mean, its interval, and each seed's."""
    name = "mAP"
    figures, resampled = (
        [{name: mean(one[name] for one in of)} for of in (base, other)],
        [{name: np.mean([one.resampled[name] for one in of], axis=0)} for of in (base, other)],
    )
    by = differences(*figures, *resampled, base[0].drawn)[name]
    value, low, high = (f"{100 * number:+.1f}" for number in (by.value, by.low, by.high))
    seeds = ", ".join(f"{100 * (after[name] - before[name]):+.1f}" for before, after in zip(base, other, strict=True))
    return f"{value} ({low} to {high}; {seeds})"


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
