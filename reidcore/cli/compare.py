"""`reidcore compare`: set runs side by side, and say which differences are more than chance."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from reidcore.api import Comparison, compare, report_comparison
from reidcore.errors import ReidError
from reidcore.reporting import Bar, make_console
from reidcore.retrieval.store import refuse_existing


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders; the first is what others are held to; of one, its tests"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-o", "--output", metavar="FILE.html", type=Path, help="also write a page to look at")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Print a table a test; of a single run one of its tests."""
    if options.output:
        refuse_existing(options.output)
        if options.output.suffix != ".html":
            raise ReidError(f"cannot write {options.output}: what comes out is a page, an .html file")
        with Bar(make_console(stderr=True), options.quiet) as bar:
            comparisons = report_comparison(options.runs, options.output, options.plugin, bar)
    else:
        comparisons = compare(options.runs)
    compared = "run" if len(options.runs) > 1 else "test"
    if options.json:
        print(json.dumps({label: _plain(each, f"{compared}s") for label, each in comparisons.items()}, indent=2))
        return 0
    console = make_console()
    for label, comparison in comparisons.items():
        console.print(_table(label, comparison, compared))
    console.print(
        "Differences are in points. Their intervals, by paired bootstrap over query identities, hold all those of a "
        f"{compared} at once with a confidence of 97%.",
        highlight=False,
        soft_wrap=True,
    )
    if options.output:
        console.print(f"page: {options.output}", highlight=False, soft_wrap=True)
    return 0


def _table(label: str, comparison: Comparison, compared: str) -> Table:
    first, *others = comparison.results
    result = comparison.results[first]
    title = f"{label}: {result.covered} of {result.queries} queries, {result.drawn} identities"
    right = ("value", "difference", "interval")
    columns = (compared, "figure", *right, "verdict")
    table = Table(
        *(Column(name, justify="right" if name in right else "left") for name in columns),
        title=title,
        title_justify="left",
    )
    for name, value in result.items():
        table.add_row(first, name, f"{value:.1%}")
    for run in others:
        table.add_section()
        for name, value in comparison.results[run].items():
            difference = comparison.differences[run].get(name)
            cells = ["", "", ""]
            if difference:
                known = np.isfinite(difference.low)
                interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}" if known else "unknown"
                cells = [f"{100 * difference.value:+.1f}", interval, difference.verdict]
            table.add_row(run, name, f"{value:.1%}", *cells)
    return table


def _plain(comparison: Comparison, compared: str) -> dict[str, object]:
    return {
        compared: {run: dict(result) for run, result in comparison.results.items()},
        "differences": {
            run: {
                name: {
                    "difference": it.value,
                    "low": it.low if np.isfinite(it.low) else None,
                    "high": it.high if np.isfinite(it.high) else None,
                    "verdict": it.verdict,
                }
                for name, it in found.items()
            }
            for run, found in comparison.differences.items()
        },
    }
