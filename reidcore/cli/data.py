"""`reidcore data`: say what is in a data set, and what is wrong with it."""

from __future__ import annotations

import json
import statistics
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from reidcore.catalog import discover
from reidcore.cli.listing import print_columns
from reidcore.data import image_size, read_image
from reidcore.errors import DataError, RecipeError, first_of
from reidcore.recipe import load_recipe
from reidcore.reporting import Bar, make_console
from reidcore.retrieval.sheet import check_sheet, draw_samples
from reidcore.types import UNKNOWN, Sample, Splits

SHEET = (8, 8)
"""Identities, and images of each, on a sheet."""
PART = 100
"""Images that a thread looks at in turn."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="the data set; `reidcore components dataset` lists them")
    parser.add_argument("--root", metavar="DIR", help="where it is: --option root=DIR")
    parser.add_argument(
        "--option", metavar="KEY=VALUE", action="append", default=[], help="an option of it: --option size=large"
    )
    parser.add_argument("--whole", action="store_true", help="decode every image, not only look at its header")
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="also draw some images of some identities")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Print what there is, and exit with 2 if some of it cannot be read."""
    if options.sheet:
        check_sheet(options.sheet)
    splits = _build(options)
    parts = {name: getattr(splits, name) for name in ("train", "query", "gallery")}
    files = list({sample.name: sample for part in parts.values() for sample in part}.values())
    sizes: dict[str, tuple[int, int]] = {}
    faults: list[str] = []
    done = 0
    with Bar(make_console(stderr=True), options.quiet) as bar, ThreadPoolExecutor() as pool:
        groups = [files[start : start + PART] for start in range(0, len(files), PART)]
        for group, looks in zip(groups, pool.map(partial(_look, whole=options.whole), groups), strict=True):
            for sample, found in zip(group, looks, strict=True):
                if isinstance(found, DataError):
                    faults.append(str(found))
                else:
                    sizes[sample.name] = found
            done += len(group)
            bar("looking at images", done, len(files))
    head = ("SPLIT", "IMAGES", "IDENTITIES", "EACH", "CAMERAS", "PIXELS")
    print_columns([head, *(_row(name, part, sizes) for name, part in parts.items() if part)])
    for note in splits.notes:
        print(note)
    if options.sheet:
        rows = _chosen(splits.train or splits.gallery)
        draw_samples(rows, options.sheet)
        print(f"{options.sheet}: images of {len(rows)} identities")
    if faults:
        raise DataError(f"{len(faults)} of {len(files)} images cannot be read:\n{first_of(faults)}")
    return 0


def _build(options: Namespace) -> Splits:
    """Build the data set as a recipe would."""
    discover(map(Path, options.plugin)).find("dataset", options.name)
    given = [f"root={json.dumps(options.root)}"] if options.root is not None else []
    chosen = [f"train.0.{option}" for option in (*given, *options.option)]
    recipe = {"run": {"name": "data"}, "train": [{"name": options.name}]}
    try:
        loaded = load_recipe(recipe, overrides=chosen, plugin_files=options.plugin)
    except RecipeError as error:
        raise RecipeError(
            text.removeprefix("recipe: ").replace("--set train.0.", "--option ").replace("train.0.", "")
            for text in error.problems
        ) from None
    splits: Splits = loaded.recipe.train[0].dataset.build()
    return splits


def _look(samples: Sequence[Sample], whole: bool) -> list[tuple[int, int] | DataError]:
    return [_look_at(sample, whole) for sample in samples]


def _look_at(sample: Sample, whole: bool) -> tuple[int, int] | DataError:
    """Return width and height of an image, or what is wrong with it."""
    try:
        if whole or not isinstance(sample.image, Path):
            height, width = read_image(sample).shape[1:]
            return width, height
        return image_size(sample.image)
    except DataError as error:
        return error
    except Exception:  # of a header; read as a whole, it says what it is
        try:
            read_image(sample)
        except DataError as error:
            return error
        raise


def _row(name: str, part: Sequence[Sample], sizes: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    counts = Counter(sample.identity for sample in part if sample.identity != UNKNOWN)
    cameras = {sample.camera for sample in part} - {UNKNOWN}
    each = f"{min(counts.values())} to {max(counts.values())}" if counts else "-"
    found = [sizes[sample.name] for sample in part if sample.name in sizes]
    return name, str(len(part)), str(len(counts)), each, str(len(cameras) or "-"), _pixels(found)


def _pixels(sizes: Sequence[tuple[int, int]]) -> str:
    """Return smallest, middle and largest width and height."""
    if not sizes:
        return "-"
    low, middle, high = (
        "x".join(str(round(choose(values))) for values in zip(*sizes, strict=True))
        for choose in (min, statistics.median, max)
    )
    return low if low == high else f"{low} to {high}, median {middle}"


def _chosen(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return some images of some identities, evenly chosen; those of an identity by camera."""
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.identity, []).append(sample)
    groups = list(found.values())
    count = min(SHEET[0], len(groups))
    rows = []
    for group in (groups[number * len(groups) // count] for number in range(count)):
        group = sorted(group, key=lambda sample: sample.camera)
        shown = min(SHEET[1], len(group))
        rows.append([group[number * len(group) // shown] for number in range(shown)])
    return rows
