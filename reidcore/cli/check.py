"""`reidcore check`: report every mistake in a recipe."""

from argparse import ArgumentParser, Namespace

from reidcore.cli import add_recipe_arguments
from reidcore.recipe import load_recipe, needed


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_recipe_arguments(parser)
    parser.add_argument("--build", action="store_true", help="also build the model, without data and weights")


def main(options: Namespace) -> int:
    """Say that the recipe is right; mistakes are raised."""
    loaded = load_recipe(options.recipe, overrides=options.set, plugin_files=options.plugin)
    needed(loaded)
    if options.build:
        from reidcore.assemble import check_build

        check_build(loaded)
    print(f"{options.recipe}: no mistakes found")
    return 0
