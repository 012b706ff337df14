"""`reidcore report`: write what a finished run came to as a page to look at."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from reidcore.api import report_run
from reidcore.report import QUERIES
from reidcore.reporting import Bar, make_console


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--test", metavar="NAME", action="append", default=[], help="show this test only; may be repeated"
    )
    parser.add_argument(
        "--queries", metavar="N", type=_count, default=QUERIES, help=f"rank lists of each test (default: {QUERIES})"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="where images are now: --set test.0.root=DIR"
    )
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"found '{text}'; expected a number of at least 1")
    return int(text)


def main(options: Namespace) -> int:
    """Write the page, and say where it is."""
    with Bar(make_console(stderr=True), options.quiet) as bar:
        file = report_run(options.run, options.test, options.queries, options.set, options.plugin, bar)
    make_console().print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    return 0
