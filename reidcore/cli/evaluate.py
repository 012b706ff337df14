"""`reidcore evaluate`: evaluate a finished run again."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.api import evaluate_run
from reidcore.reporting import Bar, describe_chosen, make_console, metrics_table


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--artifact", metavar="FILE", type=Path, help="an exported file, which computes the embeddings in its place"
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key of its recipe")
    parser.add_argument("--intervals", action="store_true", help="show 95% intervals")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Print the figures and the queries that they cover."""
    console = make_console()
    with Bar(make_console(stderr=True), options.quiet) as bar:
        results = evaluate_run(options.run, options.set, options.plugin, options.artifact, bar)
    rows = {
        label: (result, f"{result.covered} of {result.queries}{describe_chosen(result.chosen)}")
        for label, result in results.items()
    }
    console.print(metrics_table(rows, options.intervals))
    return 0
