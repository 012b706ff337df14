"""Every network that a recipe can put together: it builds, trains one step and embeds, or is refused by name."""

from itertools import product

import attrs
import pytest
import torch

from reidcore.assemble import build_losses, build_model
from reidcore.catalog import Catalog
from reidcore.errors import ContractError
from reidcore.recipe import load_recipe
from reidcore.types import Batch, Step

CATALOG = Catalog.of()  # the core's, whatever is installed
NAMES = {
    kind: [component.full_name for component in CATALOG.components(kind)] for kind in ("backbone", "aggregator", "head")
}
IMAGES, CLASSES, SIZE = 4, 2, (64, 32)


def model_of(backbone: str, aggregator: str, head: str):
    """Return the recipe and the model of three parts, and its losses."""
    options = {field.name for field in attrs.fields(CATALOG.find("backbone", backbone).config)}
    table = {
        "run": {"name": "walk"},
        "train": [{"name": "core:synthetic"}],
        "input": {"height": SIZE[0], "width": SIZE[1]},
        "backbone": {"name": backbone, **({"weights": "none"} if "weights" in options else {})},
        "aggregator": {"name": aggregator},
        "head": {"name": head},
    }
    recipe = load_recipe(table, catalog=CATALOG).recipe
    torch.manual_seed(0)
    model = build_model(recipe, CLASSES)
    return recipe, model, build_losses(recipe, model, CLASSES)


def trains_and_embeds(backbone: str, aggregator: str, head: str) -> None:
    recipe, model, losses = model_of(backbone, aggregator, head)
    images = torch.randint(0, 256, (IMAGES, 3, *SIZE), dtype=torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    batch = Batch(images, labels, torch.zeros_like(labels), labels)
    optimizer = recipe.optimizer.build(list(model.named_parameters()))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    terms = losses(model.train()(images, losses.maps, batch.cameras), batch, Step(number=0, epoch=0))
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    learning = {name.partition(".")[0] for name, parameter in after.items() if parameter.requires_grad}
    assert learning == {name.partition(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert {"backbone", "heads"} <= learning
    with torch.inference_mode():
        embedding = model.eval()(images).embedding
    assert embedding.shape == (IMAGES, model.dim) and embedding.isfinite().all()
    assert (embedding[0] - embedding[1]).abs().max() > 1e-5 * embedding.abs().max()


def accepted(backbone: str, aggregator: str, head: str) -> bool:
    """Whether assembly takes the three; when it does not, the message names the part that does not fit."""
    try:
        with torch.device("meta"):
            model_of(backbone, aggregator, head)
    except ContractError as error:
        assert str(error).startswith(("aggregator", "head", "backbone")), error
        return False
    return True


def one_of_each() -> list[tuple[str, str, str]]:
    """Return combinations that together hold every part, each with the first others that it goes with."""
    chosen: list[tuple[str, str, str]] = []
    for position, kind in enumerate(NAMES):
        for name in NAMES[kind]:
            if not any(combination[position] == name for combination in chosen):
                with_it = (combination for combination in product(*NAMES.values()) if combination[position] == name)
                first = next((combination for combination in with_it if accepted(*combination)), None)
                assert first is not None, f"no network has the {kind} {name}"
                chosen.append(first)
    return chosen


def test_every_part_trains_and_embeds_once() -> None:
    for combination in one_of_each():
        trains_and_embeds(*combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", list(product(*NAMES.values())), ids="-".join)
def test_every_network_trains_and_embeds_or_is_refused_by_name(combination: tuple[str, str, str]) -> None:
    if accepted(*combination):
        trains_and_embeds(*combination)
