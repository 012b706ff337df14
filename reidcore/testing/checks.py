"""The checks, by kind. Each takes a `Kit`, raises AssertionError for a broken promise, and is named after it.

Shapes: B batch, D embedding, C channels, H W map, K classes.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from reidcore.catalog import SELECTION, Catalog
from reidcore.checkpoint import WEIGHTS, load_tensors
from reidcore.errors import ContractError, RecipeError, RunError
from reidcore.kinds import KINDS
from reidcore.testing.kit import SIZES, Kit
from reidcore.testing.toys import seem_trained, tiny_recipe
from reidcore.types import Batch, Features, Output, Parts, Sample, Step, Stream

CLASSES, DIM = 5, 16
STEP = Step(number=0, epoch=0)


# every component


def has_a_summary_and_help_for_every_option(kit: Kit) -> None:
    """The config has a docstring, and each option a help text."""
    assert kit.component.summary, "the config class has no docstring"
    silent = [field.name for field in attrs.fields(kit.component.config) if not field.metadata.get("help")]
    assert not silent, f"declare with option(..., help=...): {', '.join(silent)}"


def config_is_frozen_and_keyword_only(kit: Kit) -> None:
    """Configs are data: nobody changes them, and options are given by name."""
    config = kit.config()
    assert copy.deepcopy(config) == config
    for field in attrs.fields(kit.component.config):
        assert field.kw_only, f"declare the config with kw_only=True ({field.name})"
        try:
            setattr(config, field.name, None)
        except attrs.exceptions.FrozenInstanceError:
            continue
        raise AssertionError("declare the config with attrs.frozen")


def comes_back_from_a_recipe(kit: Kit) -> None:
    """The options survive being written as TOML, as a run folder's filled recipe has them."""
    import tomli
    import tomli_w

    from reidcore.recipe import as_table

    table = tomli.loads(tomli_w.dumps(as_table(kit.config(), kit.catalog)))
    assert table.pop("name") == kit.component.full_name
    assert attrs.evolve(kit, options=table).config() == kit.config()


def unknown_options_are_refused(kit: Kit) -> None:
    """A misspelt option is an error."""
    try:
        attrs.evolve(kit, options={**kit.options, "no_such_option": 1}).config()
    except RecipeError:
        return
    raise AssertionError("the option 'no_such_option' was taken")


def is_described_without_torch(kit: Kit) -> None:
    """Listing and checking import no torch: the module of the hooks imports it in `build` only."""
    assert _heavy_imports(kit.component.plugin) == "", "import these in the config's build(), not above it"


@cache
def _heavy_imports(plugin: str) -> str:
    """Return which heavy packages the installed `plugin` imports when it is described; of others, nothing is known."""
    code = f"""
import os, sys
os.environ["{SELECTION}"] = {plugin!r}
from reidcore.catalog import discover
discover()
print(*sorted({{"torch", "torchvision", "timm", "faiss", "PIL"}} & set(sys.modules)))
"""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def old_names_of_options_lead_to_options(kit: Kit) -> None:
    """`renamed`, if there is one, leads from keys that nothing else has to options that there are."""
    names = {field.name for field in attrs.fields(kit.component.config)}
    taken = names | {"name", *KINDS[kit.kind].reserved}
    renamed = getattr(kit.component.config, "renamed", None)
    for old, new in renamed.items() if isinstance(renamed, Mapping) else ():
        assert new in names, f"renamed leads from '{old}' to '{new}', which is no option"
        assert old not in taken, f"renamed has '{old}' for an old name, but that is a key still"


def a_deprecation_says_what_to_use(kit: Kit) -> None:
    """`deprecated` names, in quotes, what to write instead."""
    text = kit.component.deprecated
    assert not text or re.search(r"'[^']+'", text), f"write deprecated=\"use 'its replacement'\", found {text!r}"


# networks in general


def _close(found: Any, expected: Any) -> None:
    """Compare trees of tensors."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    elif isinstance(expected, Mapping):
        assert set(found) == set(expected)
        for name, value in expected.items():
            _close(found[name], value)
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _close(one, other)


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [leaf for value in tree for leaf in _leaves(value)] if isinstance(tree, (tuple, list)) else []


def _shapes(results: Mapping[str, Tensor | None]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(result.shape) for name, result in results.items() if result is not None}


@attrs.frozen
class _Network:
    """How the checks of networks use one: how it is made, fed and read."""

    make: Callable[[int], nn.Module]
    inputs: Callable[[int], Any]
    read: Callable[[Any], Any]

    def build(self, seed: int) -> nn.Module:
        """Return the network as if it had trained a little, so that none of its branches is switched off.

        What learns and starts at 0 has random values, and batch norms have met a batch.
        """
        module = self.make(seed).train()
        momenta = {
            norm: norm.momentum for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        }
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad and not parameter.any():
                    parameter.normal_(0, 0.2)
            for norm in momenta:
                norm.momentum = 0.5
            self.run(module, self.inputs(8))
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        return module

    def run(self, module: nn.Module, inputs: Any) -> Any:
        return self.read(module(*inputs))


def _network(kit: Kit, size: tuple[int, int] = SIZES[0]) -> _Network:
    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=torch.Generator().manual_seed(7))

    if kit.kind == "backbone":
        names = tuple(kit.build(*size).shapes)
        return _Network(lambda seed: kit.build(*size, seed=seed), lambda n: (noise(n, 3, *size), names), dict)
    if kit.kind == "aggregator":
        shapes = kit.backbone(size).shapes
        needs = kit.build(kit.backbone(size)).needs

        def maps(n: int) -> tuple[dict[str, Tensor]]:
            return ({name: noise(n, *attrs.astuple(shapes[name])[:3]) for name in needs},)

        return _Network(
            lambda seed: kit.build(kit.backbone(size), seed=seed),
            maps,
            lambda views: {**views.vectors, **{f"extra {name}": x for name, x in views.extras.items()}},
        )
    return _Network(
        lambda seed: kit.build(DIM, CLASSES, seed=seed),
        lambda n: (noise(n, DIM),),
        lambda out: {"before": out.before, "after": out.after, "logits": out.logits, "embedding": out.embedding},
    )


def is_deterministic_under_a_seed(kit: Kit) -> None:
    """The same seed builds the same network, and in evaluation it computes the same twice."""
    network = _network(kit)
    first, second = network.build(3).eval(), network.build(3).eval()
    inputs = network.inputs(2)
    with torch.no_grad():
        _close(network.run(second, inputs), network.run(first, inputs))
        _close(network.run(first, inputs), network.run(first, inputs))


def evaluates_one_image_as_in_a_batch(kit: Kit) -> None:
    """In evaluation an image's result does not depend on its batch, which may be of one."""
    network = _network(kit)
    module = network.build(0).eval()
    inputs = network.inputs(3)
    one = tuple({k: v[1:2] for k, v in x.items()} if isinstance(x, dict) else _row(x) for x in inputs)
    with torch.no_grad():
        batch, single = _leaves(network.run(module, inputs)), _leaves(network.run(module, one))
    for several, alone in zip(batch, single, strict=True):
        torch.testing.assert_close(alone[0], several[1], rtol=1e-3, atol=1e-4)


def _row(x: Any) -> Any:
    return x[1:2] if isinstance(x, Tensor) else x


def state_dict_comes_back(kit: Kit) -> None:
    """A network built with another seed computes the same once it has loaded the state dict."""
    network = _network(kit)
    first, second = network.build(1), network.build(2)
    inputs = network.inputs(4)
    network.run(first.train(), inputs)  # moves running statistics
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        _close(network.run(second.eval(), inputs), network.run(first.eval(), inputs))


def computes_in_bfloat16(kit: Kit) -> None:
    """Under autocast the results are finite, of the same shapes, and those of float32 but for rounding."""
    network = _network(kit)
    module = network.build(0).eval()
    inputs = network.inputs(2)
    with torch.no_grad():
        exact = _leaves(network.run(module, inputs))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = _leaves(network.run(module, inputs))
    for one, other in zip(rounded, exact, strict=True):
        assert one.shape == other.shape and one.isfinite().all()
        away = (one.float() - other).norm() / other.norm().clamp(min=1e-6)
        assert away < 0.1, f"in bfloat16 a result is {float(away):.0%} away from that in float32"


def trains(kit: Kit) -> None:
    """Training gives the results of evaluation, but for extras, and every parameter that learns has a gradient."""
    network = _network(kit)
    inputs = network.inputs(4)
    with torch.no_grad():
        quiet = _shapes(network.run(network.build(0).eval(), inputs))
    idle: dict[str, None] = {}
    for seed in range(5):  # a small layer's rectified values may all be 0 by chance
        module = network.build(seed).train()
        found = network.run(module, inputs)
        left_out = {name for name in quiet if name.startswith("extra ")} - set(found)
        assert _shapes(found) == {name: shape for name, shape in quiet.items() if name not in left_out}
        results = _leaves(found)
        learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if learning:
            total = torch.stack([leaf.float().square().sum() for leaf in results if leaf.requires_grad]).sum()
            total.backward()  # type: ignore[no-untyped-call]
        still = [name for name, p in learning.items() if p.grad is None or not p.grad.any()]
        idle = dict.fromkeys(name for name in still if name in idle or seed == 0)
        if not idle:
            return
    raise AssertionError(f"no gradient reaches {', '.join(list(idle)[:5])}")


def builds_without_memory(kit: Kit) -> None:
    """`check --build` builds it on the meta device: no value is looked at, no file read."""
    with torch.device("meta"):
        module = kit.build(*_build_arguments(kit))
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def _build_arguments(kit: Kit) -> tuple[Any, ...]:
    if kit.kind == "backbone":
        return SIZES[0]
    return (kit.backbone(),) if kit.kind == "aggregator" else (DIM, CLASSES)


def forward_can_be_exported(kit: Kit) -> None:
    """`torch.export` traces the forward pass of evaluation for any batch (`x.shape[0]`, not `len(x)`, is its size), and
    the graph computes the same."""
    network = _network(kit)
    inputs = network.inputs(2)
    tensors = tuple(_leaves(inputs))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = network.build(0).eval()

        def forward(self, *given: Tensor) -> list[Tensor]:
            left = list(given)
            filled = tuple(
                {name: left.pop(0) for name in x}
                if isinstance(x, dict)
                else left.pop(0)
                if isinstance(x, Tensor)
                else x
                for x in inputs
            )
            return _leaves(network.run(self.part, filled))

    plain = Plain().eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        exported = torch.export.export(plain, tensors, dynamic_shapes=(tuple({0: batch} for _ in tensors),)).module()
        more = tuple(_leaves(network.inputs(5)))
        _close(list(exported(*more)), list(plain(*more)))


# backbones


def maps_have_the_published_shapes(kit: Kit) -> None:
    """Each map is as `shapes` says, for two input sizes; only signed ones hold negative values."""
    for size in SIZES:
        backbone = kit.build(*size).eval()
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, *size), tuple(backbone.shapes))
        assert set(maps) == set(backbone.shapes)
        for name, shape in backbone.shapes.items():
            assert maps[name].shape == (2, shape.channels, shape.height, shape.width), name
            assert shape.signed or maps[name].min() >= 0, f"{name} holds negative values; publish it as signed"


def gives_the_maps_that_are_wanted_and_no_others(kit: Kit) -> None:
    """The result has the names in `want`, each the same as when all are wanted."""
    backbone = kit.build(*SIZES[0]).eval()
    images = torch.randn(2, 3, *SIZES[0])
    with torch.no_grad():
        everything = backbone(images, tuple(backbone.shapes))
        for name in backbone.shapes:
            found = backbone(images, (name,))
            assert set(found) == {name}
            torch.testing.assert_close(found[name], everything[name])


def tails_are_copies_that_end_in_the_last_map(kit: Kit) -> None:
    """What `tail` returns shares nothing with the backbone, and makes the last map of the one it follows.

    It may be empty, where nothing follows a map, and ContractError says that a backbone has none.
    """
    backbone = kit.build(*SIZES[0]).eval()
    last = tuple(backbone.shapes)[-1]
    own = {parameter.data_ptr() for parameter in backbone.parameters()}
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, *SIZES[0]), tuple(backbone.shapes))
        for name in backbone.shapes:
            try:
                tail = backbone.tail(name).eval()
            except ContractError:
                continue
            parameters = [parameter.data_ptr() for parameter in tail.parameters()]
            assert not own & set(parameters), f"the tail after {name} shares parameters with the backbone"
            if parameters:
                torch.testing.assert_close(tail(maps[name]), maps[last], msg=f"the tail after {name}")


def publishes_how_images_are_normalised(kit: Kit) -> None:
    """`mean` and `std` are three numbers each, of pixel values in 0..1."""
    backbone = kit.build(*SIZES[0])
    assert len(backbone.mean) == len(backbone.std) == 3
    assert all(0 <= value <= 1 for value in backbone.mean) and all(0 < value <= 1 for value in backbone.std)


def takes_cameras(kit: Kit) -> None:
    """Cameras may be given, unknown ones (-1) among them."""
    backbone = kit.build(*SIZES[0]).eval()
    last = tuple(backbone.shapes)[-1:]
    with torch.no_grad():
        found = backbone(torch.randn(3, 3, *SIZES[0]), last, torch.tensor([-1, 0, 1]))
    assert found[last[0]].isfinite().all()


# aggregators


def views_and_extras_have_the_published_shapes(kit: Kit) -> None:
    """Each view and extra is as published, for two input sizes, and the embedding is made of views."""
    for size in SIZES:
        backbone = kit.backbone(size).eval()
        aggregator = kit.build(backbone).eval()
        with torch.no_grad():
            views = aggregator(backbone(torch.randn(2, 3, *size), aggregator.needs))
        assert {name: tuple(x.shape) for name, x in views.vectors.items()} == {
            name: (2, dim) for name, dim in aggregator.views.items()
        }
        assert {name: tuple(x.shape) for name, x in views.extras.items()} == {
            name: (2, *extra.shape) for name, extra in aggregator.extras.items()
        }
        assert aggregator.embed and set(aggregator.embed) <= set(aggregator.views)


# heads


def vectors_and_logits_have_the_published_shapes(kit: Kit) -> None:
    """For two widths, what it puts out has `dim` numbers and one logit a class; cosines are cosines."""
    for width in (DIM, DIM + 5):
        head = kit.build(width, CLASSES).eval()
        out = head(torch.randn(3, width))
        assert out.after.shape == out.embedding.shape == (3, head.dim)
        assert out.before.shape[0] == 3 and out.logits.shape == (3, CLASSES)
        assert head.logits in ("linear", "cosine")
        if head.logits == "cosine":
            assert out.logits.abs().max() <= 1 + 1e-5


def classes_can_be_replaced(kit: Kit) -> None:
    """`resize` makes another number of classes, from rows when they are given; 0 classes are no classifier."""
    head = kit.build(DIM, CLASSES).eval()
    x = torch.randn(3, DIM)
    embedding = head(x).embedding
    rows = torch.randn(CLASSES + 2, head.dim)
    head.resize(CLASSES + 2, rows)
    first = head(x).logits
    assert first.shape == (3, CLASSES + 2)
    torch.testing.assert_close(head(x).embedding, embedding)
    head.resize(CLASSES + 2, rows)
    torch.testing.assert_close(head(x).logits, first)
    head.resize(0)
    assert head(x).logits is None
    assert kit.build(DIM, 0)(torch.randn(2, DIM)).logits is None


# losses

LABELS = (0, 0, 1, 1, 2, 2, 3, 3)


def _model(catalog: Catalog, classifier: str = "linear") -> Any:
    """Return a small model with one view."""
    from reidcore.assemble import build_model
    from reidcore.recipe import load_recipe

    table = {
        "run": {"name": "toy"},
        "train": [{"name": "core:synthetic"}],
        "input": {"height": SIZES[0][0], "width": SIZES[0][1]},
        # with less than 16 channels oneDNN 3.12 writes out of bounds (1x1, stride 2, odd batches, AVX512)
        "backbone": {"name": "core:resnet18", "weights": "none", "base": 16},
        "aggregator": {"name": "core:avg"},
        "head": {"name": "core:bnneck", "classifier": classifier},
    }
    return build_model(load_recipe(table, catalog=catalog).recipe, CLASSES)


def _parts(kit: Kit) -> Parts:
    """Return what a loss may look at: a model whose head has the logits that the loss needs."""
    from reidcore.networks import load_frozen

    def parts(classifier: str) -> Parts:
        return Parts(_model(kit.catalog, classifier), CLASSES, frozen=load_frozen)

    needs = kit.build(parts("linear")).needs
    return parts("cosine" if needs.logits == "cosine" else "linear")


def _output(model: Any, loss: Any, labels: tuple[int, ...], order: Any = None) -> tuple[Output, Batch]:
    """Return what a loss is given for a batch with these labels, its images in another order when one is given."""
    images = torch.randint(0, 256, (len(labels), 3, *SIZES[0]), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    chosen = torch.arange(len(labels)) if order is None else torch.tensor(order)
    batch = Batch(images[chosen], torch.tensor(labels)[chosen], torch.zeros_like(chosen), chosen)
    return model.train()(batch.images, loss.needs.maps), batch


def _losses(kit: Kit, labels: tuple[int, ...], order: Any = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the terms of a batch with these labels, and the parameters that they are differentiated by."""
    parts = _parts(kit)
    loss = kit.build(parts).train()
    terms = dict(loss(*_output(parts.model, loss, labels, order), Step(0, 0)))
    return terms, [*parts.model.parameters(), *loss.parameters()]


def terms_are_finite_scalars_that_train(kit: Kit) -> None:
    """Each term is one finite number, and their sum has a gradient."""
    terms, parameters = _losses(kit, LABELS)
    assert terms and all(term.shape == () and term.isfinite() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def is_a_function_of_its_batch_and_its_state(kit: Kit) -> None:
    """Built with other chance, it has the same terms for the same batch once it has loaded the state dict."""
    parts = _parts(kit)
    first, second = kit.build(parts, seed=1).train(), kit.build(parts, seed=2).train()
    given = _output(parts.model, first, LABELS)
    first(*given, Step(0, 0))  # may move what it remembers
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    _close(dict(second(*given, Step(0, 0))), dict(first(*given, Step(0, 0))))


def is_computed_in_float32(kit: Kit) -> None:
    """Under autocast the terms of results in bfloat16 are those of the same numbers in float32."""
    parts = _parts(kit)
    loss = kit.build(parts).train()
    output, batch = _output(parts.model, loss, LABELS)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) else {name: cast(x, dtype) for name, x in value.items()}

    def given(source: Output, dtype: torch.dtype) -> Output:
        return Output(**{field.name: cast(getattr(source, field.name), dtype) for field in attrs.fields(Output)})

    rounded = given(output, torch.bfloat16)
    state = copy.deepcopy(loss.state_dict())
    expected = dict(loss(given(rounded, torch.float32), batch, Step(0, 0)))
    loss.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        found = dict(loss(rounded, batch, Step(0, 0)))
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value, rtol=1e-3, atol=1e-4)


def the_order_of_images_does_not_matter(kit: Kit) -> None:
    """A shuffled batch has the same loss."""
    plain, _ = _losses(kit, LABELS)
    shuffled, _ = _losses(kit, LABELS, [5, 2, 7, 0, 3, 6, 1, 4])
    assert set(plain) == set(shuffled)
    for name, value in plain.items():
        torch.testing.assert_close(shuffled[name], value, rtol=1e-3, atol=1e-4)


def odd_batches_are_finite(kit: Kit) -> None:
    """Batches without a positive pair, of one identity, and without any label give finite terms and gradients."""
    for labels in ((0, 1, 2, 3), (2, 2, 2), (-1, -1), (0, 0, -1, 1)):
        terms, parameters = _losses(kit, labels)
        assert all(term.isfinite() for term in terms.values()), labels
        total = torch.stack(list(terms.values())).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
            assert all(p.grad is None or p.grad.isfinite().all() for p in parameters), labels


def needs_are_what_the_model_offers(kit: Kit) -> None:
    """`needs` names views and maps of the model, in tuples."""
    parts = _parts(kit)
    needs = kit.build(parts).needs
    assert set(needs.views) <= set(parts.model.heads) and set(needs.maps) <= set(parts.model.backbone.shapes)


# samplers


def _sampler(kit: Kit, counts: tuple[int, ...], seed: int = 0) -> tuple[Any, np.ndarray[Any, Any]]:
    from reidcore.assemble import build_sampler

    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    samples = [Sample(Path("no.png"), label, number % 3, source=label % 2) for number, label in enumerate(labels)]
    return build_sampler(kit.config(), Stream(samples, labels), seed), labels


MANY = tuple(range(1, 13)) * 6


def epochs_are_finite_and_as_long_as_said(kit: Kit) -> None:
    """The number of batches is `len`, in every epoch, and all positions are images."""
    sampler, labels = _sampler(kit, MANY)
    for epoch in range(3):
        batches = [np.asarray(batch) for batch in sampler.batches(epoch)]
        assert len(batches) == len(sampler) > 0
        flat = np.concatenate(batches)
        assert flat.min() >= 0 and flat.max() < len(labels)


def batches_are_a_function_of_the_epoch_and_the_seed(kit: Kit) -> None:
    """An epoch is the same whenever it is asked for; another epoch and another seed are others."""
    sampler, _ = _sampler(kit, MANY)

    def flat(one: Any, epoch: int) -> list[int]:
        return [int(index) for batch in one.batches(epoch) for index in batch]

    first = flat(sampler, 0)
    assert flat(sampler, 1) != first
    assert flat(sampler, 0) == first
    assert flat(_sampler(kit, MANY, seed=1)[0], 0) != first


def images_of_one_identity_stand_together(kit: Kit) -> None:
    """So that a batch can be split over processes by whole identities."""
    sampler, labels = _sampler(kit, MANY)
    for batch in sampler.batches(0):
        found = labels[np.asarray(batch)]
        assert len(np.flatnonzero(np.diff(found))) + 1 == len(np.unique(found))


# metrics


def _problem(seed: int = 0, queries: int = 12, extras: Mapping[str, tuple[int, ...]] | None = None) -> Any:
    from reidcore.retrieval import Problem

    random = np.random.default_rng(seed)

    def features(count: int) -> Features:
        identities = random.integers(0, 4, count)
        embeddings = random.normal(size=(count, 8)) + identities[:, None]
        cameras = random.integers(0, 2, count)
        more = {name: random.random((count, *shape), np.float32) for name, shape in (extras or {}).items()}
        return Features(embeddings.astype(np.float32), identities, cameras, extras=more)

    return Problem(features(queries), features(40))


def _judge(kit: Kit, problem: Any, block_bytes: int) -> Any:
    from reidcore.retrieval.postprocess import Final

    state = kit.build().start(problem)
    for rows, distances in Final.of(problem, [], block_bytes).blocks():
        state.update(problem.block(rows, distances))
    return state


def figures_are_fractions_and_do_not_depend_on_blocks(kit: Kit) -> None:
    """The figures of one block of queries are those of many, and lie in 0..1."""
    problem = _problem()
    whole, pieces = (_judge(kit, problem, size).result() for size in (1 << 20, 1))
    assert whole and all(0 <= value <= 1 for value in whole.values())
    assert whole == pieces or all(math.isclose(whole[name], pieces[name], rel_tol=1e-9) for name in whole)


def tallies_can_be_merged(kit: Kit) -> None:
    """Two processes that saw half of the queries each come to the figures of one that saw all."""
    from reidcore.retrieval.postprocess import Final

    problem = _problem()
    halves = [kit.build().start(problem) for _ in range(2)]
    for rows, distances in Final.of(problem, [], 1).blocks():
        halves[rows.start % 2].update(problem.block(rows, distances))
    halves[0].merge(halves[1])
    whole = _judge(kit, problem, 1 << 20)
    found, expected = halves[0].result(), whole.result()
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[name], expected[name], rel_tol=1e-9) for name in expected)
    for name, values in whole.per_query.items():
        np.testing.assert_array_equal(halves[0].per_query[name], values)


def queries_without_a_match_do_not_count(kit: Kit) -> None:
    """Queries of strangers change no figure, and have no value."""
    problem = _problem()
    query = problem.query
    strangers = Features(query.embeddings[:3], np.array([90, 91, 92]), query.cameras[:3])
    both = Features(
        np.concatenate([query.embeddings, strangers.embeddings]),
        np.concatenate([query.identities, strangers.identities]),
        np.concatenate([query.cameras, strangers.cameras]),
    )
    state = _judge(kit, attrs.evolve(problem, query=both), 1 << 20)
    expected = _judge(kit, problem, 1 << 20).result()
    assert all(math.isclose(state.result()[name], value, rel_tol=1e-9) for name, value in expected.items())
    assert all(np.isnan(values[-3:]).all() for values in state.per_query.values())


def nothing_beats_a_perfect_ranking(kit: Kit) -> None:
    """Where all matches come first, no figure is below that of a ranking by chance."""
    problem = _problem(queries=60)
    perfect = [
        Features(np.eye(4, dtype=np.float32)[side.identities], side.identities, side.cameras)
        for side in (problem.query, problem.gallery)
    ]
    best = _judge(kit, attrs.evolve(problem, query=perfect[0], gallery=perfect[1]), 1 << 20).result()
    chance = _judge(kit, problem, 1 << 20).result()
    for name, value in chance.items():
        assert best[name] >= value, f"{name} is {best[name]} where all matches come first, and {value} by chance"
    assert best != chance, "all figures are the same for a perfect ranking and one by chance"


def figures_can_be_resampled(kit: Kit) -> None:
    """A metric with `figures` gives those of its result, within 0.02, for the sum over all identities."""
    metric = kit.build()
    if not hasattr(metric, "figures"):
        return
    state = _judge(kit, _problem(queries=60), 1 << 20)
    found = metric.figures(state.sums.values.sum(axis=0)[None])
    assert found.keys() == state.result().keys()
    for name, value in state.result().items():
        np.testing.assert_allclose(found[name], [value], atol=0.02, err_msg=name)


# post-processors


def _prepared(kit: Kit, problem: Any, block_bytes: int = 1 << 20) -> Any:
    from reidcore.retrieval.postprocess import Final

    blocks = [distances for _, distances in Final.of(problem, [kit.build()], block_bytes).blocks()]
    return np.concatenate(blocks)


def distances_are_finite_and_one_a_pair(kit: Kit) -> None:
    """The final distances have the shape (queries, gallery)."""
    problem = _problem(extras=kit.extras)
    distances = _prepared(kit, problem)
    assert distances.shape == (len(problem.query), len(problem.gallery)) and np.isfinite(distances).all()


def distances_do_not_depend_on_blocks(kit: Kit) -> None:
    """Query by query the distances are those of all queries at once, and the given features stay as they are."""
    problem = _problem(extras=kit.extras)
    before = copy.deepcopy((problem.query.embeddings, problem.gallery.embeddings))
    whole = _prepared(kit, problem)
    np.testing.assert_allclose(_prepared(kit, problem, 1), whole, rtol=0, atol=1e-6)
    for side, embeddings in zip((problem.query, problem.gallery), before, strict=True):
        assert np.array_equal(side.embeddings, embeddings), "the given features were changed"


def the_order_of_the_gallery_does_not_matter(kit: Kit) -> None:
    """A shuffled gallery has shuffled distances."""
    problem = _problem(extras=kit.extras)
    order = np.random.default_rng(3).permutation(len(problem.gallery))
    shuffled = attrs.evolve(problem, gallery=problem.gallery.take(order))
    np.testing.assert_allclose(_prepared(kit, shuffled), _prepared(kit, problem)[:, order], rtol=1e-4, atol=1e-5)


# data sets


def images_can_be_read(kit: Kit) -> None:
    """Samples pickle, and the first of each split opens as an image with a name."""
    from reidcore.data.reading import read_image

    splits = kit.build()
    assert splits.train or (splits.query and splits.gallery), "it has neither training nor test images"
    for split in (splits.train, splits.query, splits.gallery):
        for sample in split[:1]:
            again: Sample = pickle.loads(pickle.dumps(sample))
            assert again.name == sample.name
            image = read_image(again)
            assert image.shape[0] == 3 and image.dtype == torch.uint8


def no_identity_is_trained_and_tested(kit: Kit) -> None:
    """Identities of queries and gallery are not in the training images."""
    splits = kit.build()
    trained = {sample.identity for sample in splits.train if sample.identity >= 0}
    assert not trained & {sample.identity for sample in (*splits.query, *splits.gallery) if sample.identity >= 0}


# transforms


def _images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8) for size in sizes]


def _transformed(kit: Kit, transform: Any, image: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    others = _images(tuple(image.shape[1:])) * 2  # type: ignore[arg-type]
    result: Tensor = transform(image, others) if getattr(transform, "mixes", False) else transform(image)
    return result


def images_stay_images(kit: Kit) -> None:
    """(3, H, W) uint8 in, the same kind out, of the input size where `resizes` says so; the given one is unchanged."""
    transform = kit.build(*SIZES[0])
    sizes = ((200, 90), SIZES[0]) if transform.resizes else (SIZES[0],)
    for image in _images(*sizes):
        before = image.clone()
        for seed in range(10):
            found = _transformed(kit, transform, image, seed)
            assert found.dtype == torch.uint8 and found.ndim == 3 and found.shape[0] == 3
            assert not transform.resizes or tuple(found.shape[1:]) == SIZES[0]
            assert torch.equal(image, before), "the given image was changed"


def chance_comes_from_torch_alone(kit: Kit) -> None:
    """The same seed of torch's generator gives the same image, whatever other generators say."""
    import random

    transform = pickle.loads(pickle.dumps(kit.build(*SIZES[0])))
    (image,) = _images(SIZES[0])
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        first = _transformed(kit, transform, image, seed)
        random.seed(seed + 100)
        np.random.seed(seed + 100)
        assert torch.equal(_transformed(kit, transform, image, seed), first)


# optimizers and schedules


def lowers_a_simple_loss(kit: Kit) -> None:
    """A few steps bring the parameters of every part nearer to a quadratic's minimum, and its state comes back."""
    parts = (
        "backbone.layer.weight",
        "backbone.norm.bias",
        "aggregator.p",
        "heads.global.classifier.weight",
        "losses.0",
    )

    def parameters() -> list[tuple[str, nn.Parameter]]:
        return [(name, nn.Parameter(torch.ones(4, 4) if "weight" in name else torch.ones(4))) for name in parts]

    named = parameters()
    optimizer = kit.build(named)
    for _ in range(10):
        optimizer.zero_grad()
        torch.stack([p.square().sum() for _, p in named]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, p in named:
        assert p.detach().square().mean() < 1, f"{name} was not optimised"
    kit.build(parameters()).load_state_dict(optimizer.state_dict())


def factors_are_finite_at_every_step(kit: Kit) -> None:
    """The factor is a finite number of at least 0, the same whenever it is asked for."""
    schedule = kit.build(10, 6)
    values = [schedule(step) for step in range(60)]
    assert all(math.isfinite(value) and value >= 0 for value in values) and max(values) > 0
    assert [schedule(step) for step in reversed(range(60))] == values[::-1]


# loggers, tasks and exporters


def takes_every_kind_of_event(kit: Kit) -> None:
    """Steps, epochs, evaluations and the rest can be logged, with keys and of kinds that it does not know."""
    with TemporaryDirectory() as folder:
        logger = kit.build(Path(folder))
        for kind in ("step", "resume", "epoch", "evaluation", "another", "end"):
            logger.log(json.loads(json.dumps({"kind": kind, "epoch": 1, "step": 2, "loss": 0.5, "new": [1]})))
        logger.close()


def has_what_the_loop_calls(kit: Kit) -> None:
    """The methods of `reidcore.kinds.Task` are there."""
    task = kit.build()
    assert all(callable(getattr(task, name, None)) for name in ("prepare", "round", "losses", "deploy"))


def trains_a_model_that_can_be_evaluated(kit: Kit) -> None:
    """Two epochs on toy data change the weights and end with figures. A target set is there if it asks for one."""
    from reidcore.api import run
    from reidcore.recipe import load_recipe

    with TemporaryDirectory() as name:
        folder = Path(name)
        sets = [{"name": "folder", "root": str(folder / "toy")}, {"name": "folder", "root": str(folder / "toy")}]

        def train(epochs: int) -> tuple[Mapping[str, Mapping[str, float]], dict[str, Tensor]]:
            overrides = [f"run.name=epochs{epochs}", f"training.epochs={epochs}"]
            task = {"name": kit.component.full_name, **kit.options}
            try:
                recipe = tiny_recipe(folder, task=task)
                done = run(load_recipe(recipe, overrides=overrides, catalog=kit.catalog))
            except RunError:
                recipe = tiny_recipe(folder, task=task, train=[sets[0], {**sets[1], "role": "target"}])
                done = run(load_recipe(recipe, overrides=overrides, catalog=kit.catalog))
            return done.metrics, load_tensors(done.folder / WEIGHTS)

        (metrics, trained), (_, fresh) = train(2), train(0)
    assert all(math.isfinite(value) for figures in metrics.values() for value in figures.values())
    assert any(not torch.equal(trained[key], fresh[key]) for key in fresh if key in trained), "nothing was learned"


def artifact_computes_what_the_model_does(kit: Kit) -> None:
    """The core's own proof: embeddings of the artifact are the model's within the tolerance, and are again those of a
    file that can be opened without the model."""
    from reidcore.export import export

    images = np.random.default_rng(0).integers(0, 256, (8, *SIZES[0], 3)).astype(np.uint8)
    model = seem_trained(_model(kit.catalog))
    with TemporaryDirectory() as folder:
        exporter = kit.build()
        files = [Path(file) for file in export(model, exporter, images, Path(folder) / "export").files]
        assert files and all(file.is_file() for file in files)
        suffixes = getattr(kit.component.config, "suffixes", ())
        assert not suffixes or any(file.suffix in suffixes for file in files)
        for file in (file for file in files if file.suffix in suffixes):
            opened = kit.component.config.open(file, "cpu")  # type: ignore[attr-defined]
            assert opened.about is None or opened.about.dim == model.dim
            found = torch.from_numpy(np.asarray(opened.run(images)["embedding"], np.float32))
            with torch.no_grad():
                expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).embedding
            assert (1 - torch.cosine_similarity(found, expected)).max() <= exporter.tolerance


_NETWORK = (
    is_deterministic_under_a_seed,
    evaluates_one_image_as_in_a_batch,
    state_dict_comes_back,
    computes_in_bfloat16,
    trains,
    builds_without_memory,
    forward_can_be_exported,
)

CHECKS: dict[str, tuple[Callable[[Kit], None], ...]] = {
    "every": (
        has_a_summary_and_help_for_every_option,
        config_is_frozen_and_keyword_only,
        comes_back_from_a_recipe,
        unknown_options_are_refused,
        is_described_without_torch,
        old_names_of_options_lead_to_options,
        a_deprecation_says_what_to_use,
    ),
    "backbone": (
        maps_have_the_published_shapes,
        gives_the_maps_that_are_wanted_and_no_others,
        publishes_how_images_are_normalised,
        takes_cameras,
        tails_are_copies_that_end_in_the_last_map,
        *_NETWORK,
    ),
    "aggregator": (views_and_extras_have_the_published_shapes, *_NETWORK),
    "head": (vectors_and_logits_have_the_published_shapes, classes_can_be_replaced, *_NETWORK),
    "loss": (
        terms_are_finite_scalars_that_train,
        is_a_function_of_its_batch_and_its_state,
        is_computed_in_float32,
        the_order_of_images_does_not_matter,
        odd_batches_are_finite,
        needs_are_what_the_model_offers,
    ),
    "sampler": (
        epochs_are_finite_and_as_long_as_said,
        batches_are_a_function_of_the_epoch_and_the_seed,
        images_of_one_identity_stand_together,
    ),
    "metric": (
        figures_are_fractions_and_do_not_depend_on_blocks,
        tallies_can_be_merged,
        queries_without_a_match_do_not_count,
        nothing_beats_a_perfect_ranking,
        figures_can_be_resampled,
    ),
    "postprocessor": (
        distances_are_finite_and_one_a_pair,
        distances_do_not_depend_on_blocks,
        the_order_of_the_gallery_does_not_matter,
    ),
    "exporter": (artifact_computes_what_the_model_does,),
    "dataset": (images_can_be_read, no_identity_is_trained_and_tested),
    "transform": (images_stay_images, chance_comes_from_torch_alone),
    "optimizer": (lowers_a_simple_loss,),
    "scheduler": (factors_are_finite_at_every_step,),
    "task": (has_what_the_loop_calls, trains_a_model_that_can_be_evaluated),
    "logger": (takes_every_kind_of_event,),
}
assert set(CHECKS) == {"every", *KINDS}
