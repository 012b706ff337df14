"""`reidcore export`: write a run's model for another engine, and prove that it computes the same."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.api import export_run
from reidcore.builtin.modules.datasets import find_images
from reidcore.reporting import Bar, describe_exported, make_console


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--to", metavar="NAME", required=True, help="the exporter; `reidcore components exporter` lists them"
    )
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the exporter: --option precision=int8; `reidcore components exporter NAME` lists them",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        nargs="+",
        type=Path,
        default=[],
        help="images, and folders of images, to prove and to calibrate on (default: the run's training images)",
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key of its recipe")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Export, and say what was proven."""
    images = find_images(options.images) if options.images else ()
    with Bar(make_console(stderr=True), options.quiet) as bar:
        bar(f"writing and proving {options.to}", 0, 0)
        exported = export_run(options.run, options.to, options.option, images, options.set, options.plugin)
    print(describe_exported(exported))
    return 0
