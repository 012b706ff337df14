"""`reidcore schema`: print the JSON schema of recipes, for editors."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.catalog import discover
from reidcore.errors import ReidError, os_message
from reidcore.recipe import require_loaded
from reidcore.schema import recipe_schema


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it there: recipe.schema.json")
    parser.add_argument(
        "--plugin", metavar="FILE.py", type=Path, action="append", default=[], help="a plugin in one file"
    )


def main(options: Namespace) -> int:
    """Print or write the schema of what is installed now."""
    catalog = discover(options.plugin)
    require_loaded(catalog, options.plugin)
    for plugin in catalog.failed:
        print(f"without plugin '{plugin.name}' ({plugin.origin}), which did not load: {plugin.error}", file=sys.stderr)
    text = json.dumps(recipe_schema(catalog), indent=2) + "\n"
    if options.output is None:
        print(text, end="")
        return 0
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReidError(os_message(error, "write", options.output)) from None
    plugins = ", ".join(plugin.name for plugin in catalog.plugins if plugin.status == "ok")
    print(f"{options.output}: recipes with the components of {plugins}")
    return 0
