"""The command line: one file a verb. Exit 0; 2 with one message for what the user can mend."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from reidcore import __version__
from reidcore.errors import ImageWarning, ReidDeprecationWarning, ReidError

VERBS = {
    "run": "train and evaluate a recipe",
    "check": "report every mistake in a recipe",
    "fill": "print a recipe with every default written out",
    "components": "list what recipes can choose from, and the options",
    "schema": "print the JSON schema of recipes, for editors",
    "plugins": "list the installed plugins and what became of them",
    "new-plugin": "write a package with a part of your own, to start from",
    "data": "say what is in a data set, and what is wrong with it",
    "evaluate": "evaluate a finished run again",
    "export": "write a run's model for another engine, and prove that it computes the same",
    "import": "take over a model of FastReID's, or of Caffe's",
    "report": "write what a finished run came to as a page to look at",
    "compare": "set runs side by side, and say which differences are more than chance",
    "embed": "write the embeddings of images to a file",
    "index": "make files of embeddings searchable",
    "search": "find the images of an index that are nearest to others",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):  # names in a listing must not end it where they cannot be encoded
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    parser = make_parser([chosen] if chosen in VERBS else [])
    options = parser.parse_args(arguments)
    options.arguments = arguments
    try:
        with warnings.catch_warnings():
            for ours in (ReidDeprecationWarning, ImageWarning):
                warnings.simplefilter("always", ours)
            warnings.showwarning = partial(_show_warning, warnings.showwarning, set())
            status: int = _module(options.verb).main(options)
    except ReidError as error:
        if options.verbose:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a listing has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return status


def make_parser(verbs: Iterable[str] = VERBS) -> argparse.ArgumentParser:
    """Return the parser of the command line. It knows the arguments of `verbs` only, whose modules it imports."""
    parser = argparse.ArgumentParser(prog="reidcore", description="Instance re-identification from recipes.")
    parser.add_argument("--version", action="version", version=f"reidcore {__version__}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, help in VERBS.items():
        sub = choices.add_parser(verb, help=help, description=help.capitalize() + ".")
        if verb in verbs:
            _module(verb).add_arguments(sub)
            sub.add_argument("-q", "--quiet", action="store_true", help="print the result only")
            sub.add_argument("-v", "--verbose", action="store_true", help="with an error, print where it came from")
    return parser


def _module(verb: str) -> Any:
    return import_module(f"reidcore.cli.{verb.replace('-', '_')}")


def _show_warning(
    show: Callable[..., None], shown: set[str], message: Warning | str, category: type[Warning], *where: Any
) -> None:
    """Print the text of our own warnings, once; leave others to `show`."""
    if not issubclass(category, (ReidDeprecationWarning, ImageWarning)):
        show(message, category, *where)
    elif (line := str(message)) not in shown:
        shown.add(line)
        print(line, file=sys.stderr)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every verb that reads a recipe takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one key: --set training.epochs=10, --set train.0.root=DIR",
    )
    parser.add_argument(
        "--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file, not installed"
    )
