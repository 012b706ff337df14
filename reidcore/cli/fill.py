"""`reidcore fill`: print a recipe with every default written out."""

from argparse import ArgumentParser, Namespace

from reidcore.cli import add_recipe_arguments
from reidcore.recipe import fill, load_recipe


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_recipe_arguments(parser)


def main(options: Namespace) -> int:
    """Print the filled recipe."""
    print(fill(load_recipe(options.recipe, overrides=options.set, plugin_files=options.plugin)), end="")
    return 0
