"""`reidcore run`: train and evaluate a recipe."""

import json
import os
import statistics
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence

from attrs import evolve
from rich.console import Console
from rich.table import Table

from reidcore.api import Finished, foresee, missing, run
from reidcore.cli import add_recipe_arguments
from reidcore.distributed import joined, restarted
from reidcore.errors import RunError
from reidcore.launch import launch
from reidcore.recipe import Loaded, load_recipe
from reidcore.reporting import make_console, metrics_table
from reidcore.types import World


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_recipe_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on with the run folder that exists")
    parser.add_argument("--processes", metavar="N", type=int, help="processes that share the work, on GPUs one each")
    parser.add_argument("--seeds", metavar="1,2,3", type=_seeds, help="one run a seed, then mean and deviation")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"found '{text}'; expected numbers such as 1,2,3") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ArgumentTypeError(f"found '{text}'; expected different numbers of at least 0")
    return seeds


def main(options: Namespace) -> int:
    """Run the recipe, once or once a seed, in one process or in several, and print what came out."""
    if options.processes is not None and "RANK" not in os.environ:
        return launch(options.arguments, options.processes)
    with joined() as world:
        if options.processes not in (None, world.size):
            raise RunError(
                f"--processes: found {options.processes}, but there are {world.size} by torchrun; leave it out"
            )
        return _run(options, world)


def _run(options: Namespace, world: World) -> int:
    console = make_console() if world.main else Console(quiet=True)
    resume = options.resume or restarted()
    overrides = list(options.set)
    if options.output:
        overrides.append(f"run.output={json.dumps(options.output)}")  # as a text whatever it looks like
    loaded = load_recipe(options.recipe, overrides=overrides, plugin_files=options.plugin)
    recipes = [_seeded(loaded, seed) for seed in options.seeds] if options.seeds else [loaded]
    if len(recipes) > 1:
        others = {other.folder: other for item in recipes for other in missing(item)}
        foresee([*others.values(), *recipes], resume)
    finished = [run(item, resume=resume, console=make_console(stderr=True), quiet=options.quiet) for item in recipes]
    _print(console, finished, loaded.recipe.evaluation.intervals)
    if options.seeds:
        _print_spread(console, [item.metrics for item in finished])
    return 0


def _seeded(loaded: Loaded, seed: int) -> Loaded:
    """Return the recipe with another seed, and the seed in its name."""
    options = loaded.recipe.run
    options = evolve(options, seed=seed, name=f"{options.name}-seed{seed}")
    return evolve(loaded, recipe=evolve(loaded.recipe, run=options))


def _print(console: Console, finished: Sequence[Finished], intervals: bool) -> None:
    for item in finished:
        rows: dict[str, tuple[Mapping[str, float], str]] = {}
        for label in item.metrics:
            figures = item.results.get(label, item.metrics[label])
            queries = f"{item.queries[label].covered} of {item.queries[label].queries}"
            if label in item.before:
                rows[f"{label}, before training"] = (item.before[label], queries)
                rows[f"{label}, after training"] = (figures, queries)
            else:
                rows[label] = (figures, queries)
        if rows:
            console.print(metrics_table(rows, intervals))
        console.print(f"run folder: {item.folder}", highlight=False, soft_wrap=True)


def _print_spread(console: Console, results: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Print mean and standard deviation over the seeds."""
    labels = list(results[0])
    names = list(results[0][labels[0]]) if labels else []
    table = Table("", *names, title=f"mean ± standard deviation of {len(results)} seeds", title_justify="left")
    for label in labels:
        cells = []
        for name in names:
            values = [result[label][name] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1%} ± {spread:.1%}")
        table.add_row(label, *cells)
    console.print(table)
