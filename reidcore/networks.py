"""From a recipe to its model, untrained or trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import evolve

from reidcore.builtin.modules.transforms import Resize
from reidcore.checkpoint import WEIGHTS, load_metadata, load_tensors
from reidcore.errors import ContractError, RunError, offer
from reidcore.model import FrozenModel, Model
from reidcore.recipe import Loaded, Recipe, TrainSet, load_recipe

RECIPE = "recipe.toml"
"""The file in a run folder that holds the recipe, filled."""


def build_model(recipe: Recipe, classes: int) -> Model:
    """Build the model of a recipe, with `classes` rows in each classifier. Raises ContractError for a misfit."""
    backbone = recipe.backbone.build(recipe.input.height, recipe.input.width)
    try:
        aggregator = recipe.aggregator.build(backbone)
    except KeyError as error:
        if (name := error.args[0]) in backbone.shapes:
            raise
        raise ContractError(
            f"aggregator: there is no map '{name}'; {offer(str(name), list(backbone.shapes))}"
        ) from None
    heads = {view: recipe.head.build(dim, classes) for view, dim in aggregator.views.items()}
    model = Model(backbone, aggregator, heads)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def load_trained(
    run: Path, weights: Path | None = None, overrides: Sequence[str] = (), plugin_files: Sequence[str | Path] = ()
) -> tuple[Model, Loaded, Sequence[int] | None]:
    """Load the model of a run folder, or of a recipe and a file of weights, with its recipe and its identities.

    Raises RunError when there is none, RecipeError for a recipe with mistakes.
    """
    recipe, file = find_trained(run, weights)
    loaded = load_recipe(recipe, overrides=overrides, plugin_files=plugin_files)
    count, identities = read_classes(file)
    model = build_model(unweighted(loaded.recipe), count)
    try:
        model.load_state_dict(load_tensors(file))
    except RuntimeError as error:
        raise RunError(f"{file} does not fit {recipe}: {str(error).splitlines()[-1].strip()}") from None
    return model, loaded, identities


def find_trained(run: Path, weights: Path | None = None) -> tuple[Path, Path]:
    """Return the recipe and the weights of a run folder, or those that are named. Raises RunError if one is missing."""
    files = (run, weights) if weights else (run / RECIPE, run / WEIGHTS)
    for file in files:
        if not file.is_file():
            lacking = f"has no {file.name}" if run.is_dir() else "does not exist"
            raise RunError(f"there is no file {file}" if weights else f"{run} is not a finished run: it {lacking}")
    return files


def read_classes(file: Path) -> tuple[int, Sequence[int] | None]:
    """Return how many classes a model's file has, and their identities in order, None where they are not known."""
    classes = load_metadata(file).get("classes")
    if classes is None:
        raise RunError(f"{file} does not say which classes it has; expected the {WEIGHTS} of a run")
    return (len(classes), classes) if isinstance(classes, list) else (classes, None)


def unweighted(recipe: Recipe) -> Recipe:
    """Return the recipe for a model whose weights come from a run, so that the backbone's own are not fetched."""
    if not hasattr(recipe.backbone, "weights"):
        return recipe
    return evolve(recipe, backbone=evolve(recipe.backbone, weights="none"))  # type: ignore[misc]


def load_frozen(
    run: Path,
    weights: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    train: Sequence[TrainSet] = (),
    plugin_files: Sequence[str | Path] = (),
) -> FrozenModel:
    """Load a trained model that is only to be looked at. Raises what `load_trained` does.

    train: the data sets of the images that it will see; it is told their cameras if they are its own training sets.
    """
    model, loaded, identities = load_trained(run, weights, plugin_files=plugin_files)
    own = [entry.dataset for entry in loaded.recipe.train]
    return freeze(model.to(device), loaded.recipe, identities, precision, own == [entry.dataset for entry in train])


def freeze(
    model: Model,
    recipe: Recipe,
    identities: Sequence[int] | None = None,
    precision: torch.dtype = torch.float32,
    cameras: bool = False,
) -> FrozenModel:
    """Return the model of a recipe as one that is only to be looked at."""
    return FrozenModel(model, identities, Resize(recipe.input.height, recipe.input.width), precision, cameras)
