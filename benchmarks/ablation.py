"""The ablation of the paper's Table 2: every recipe of a folder, trained with several seeds, as one table.

    python benchmarks/ablation.py [--seeds 1,2] [--output runs/ablation] [--set KEY=VALUE]

A run that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from reidcore import load_recipe, run
from reidcore.api import RESULTS

ROWS = (
    "bag-of-tricks",
    "ibn",
    "auto-augment",
    "soft-margin",
    "non-local",
    "gem",
    "circle-loss",
    "backbone-freeze",
    "cosine-schedule",
    "all",
)
FIGURES = ("rank1", "mAP", "mINP")
RECIPES = Path(__file__).parent.parent / "examples" / "ablation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2", help="one run of each recipe a seed")
    parser.add_argument("--output", default="runs/ablation", help="folder of the run folders")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override for every recipe")
    options = parser.parse_args()
    started = time.monotonic()
    print(f"| {'recipe':<15} | " + " | ".join(f"{name:<12}" for name in FIGURES) + " |")
    print(f"|{'-' * 17}|" + f"{'-' * 14}|" * len(FIGURES))
    for row in ROWS:
        results = [_result(row, seed, options.output, options.set) for seed in options.seeds.split(",")]
        cells = []
        for name in FIGURES:
            values = [100 * result[name] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"| {row:<15} | " + " | ".join(f"{cell:<12}" for cell in cells) + " |", flush=True)
    print(f"mean ± standard deviation of seeds {options.seeds}, in %; {(time.monotonic() - started) / 60:.0f} minutes")


def _result(row: str, seed: str, output: str, overrides: list[str]) -> dict[str, float]:
    given = [*overrides, f"run.output={json.dumps(output)}", f"run.name={row}-seed{seed}", f"run.seed={seed}"]
    loaded = load_recipe(RECIPES / f"{row}.toml", overrides=given)
    folder = Path(output) / loaded.recipe.run.name
    run(loaded, resume=folder.exists())
    (figures,) = json.loads((folder / RESULTS).read_text()).values()
    return dict(figures)


if __name__ == "__main__":
    main()
