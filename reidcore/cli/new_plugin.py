"""`reidcore new-plugin`: write a package with a part of one kind, whose tests pass as it is."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.kinds import KINDS


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="the package's name, such as reid-maxpool")
    parser.add_argument("--kind", choices=KINDS, required=True, metavar="KIND", help=f"one of {', '.join(KINDS)}")


def main(options: Namespace) -> int:
    """Write the package below the working directory, and say what to do with it."""
    from reidcore.scaffold import new_plugin

    folder = new_plugin(options.name, options.kind, Path())
    print(
        f"{folder}: a package with {KINDS[options.kind].one}. To install it, test it and use it:\n\n"
        f"    cd {folder}\n    pip install -e . pytest\n    pytest\n    reidcore run recipe.toml"
    )
    return 0
