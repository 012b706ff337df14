"""Every backbone with every aggregator and head of the catalog that goes with it, as an ONNX and as a Caffe file.

One model has all aggregators, and behind each view all heads, so that a single file holds the whole product.
"""

import copy
import functools
from pathlib import Path

import attrs
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from reidcore.builtin.modules.transforms import Resize
from reidcore.catalog import discover
from reidcore.data import read_image
from reidcore.errors import ContractError
from reidcore.export import About
from reidcore.export.caffe import CaffeExporter
from reidcore.export.graph import quantize, to_float16, trace
from reidcore.export.onnx import OnnxArtifact
from reidcore.export.proof import BATCHES
from reidcore.model import Model
from reidcore.structure import structure
from reidcore.testing import seem_trained
from reidcore.types import Views

CATALOG = discover()


def names(component) -> set[str]:
    return {field.name for field in attrs.fields(component.config)}


QUICK = ("resnet18", "osnet-x0.25", "vit-tiny", "timm")
RESNETS = ("resnet", "resnext")
PLAIN = {"avg", "max", "avg-max", "gem"}

OPTIONS = {
    "timm": {"model": "resnet10t"},
    **{
        item.name: {"base": 16}
        for item in CATALOG.components("backbone")
        if item.name.startswith(("resnet", "resnext"))
    },
}


def config(kind: str, name: str, **options: object) -> object:
    component = CATALOG.find(kind, name)
    given = {"weights": "none"} if "weights" in names(component) else {}
    return structure({**options, **given}, component.config, CATALOG, where=name)


class Every(nn.Module):
    """Several aggregators; each of their views comes once for each head."""

    def __init__(self, parts: dict[str, nn.Module], heads: list[str]) -> None:
        super().__init__()
        self.parts, self.heads = nn.ModuleDict(parts), heads
        self.needs = tuple(dict.fromkeys(name for part in parts.values() for name in part.needs))
        self.extras: dict[str, object] = {}
        self.views = {
            f"{name}_{view}_{head}": dim
            for name, part in parts.items()
            for view, dim in part.views.items()
            for head in heads
        }
        self.embed = tuple(self.views)

    def forward(self, maps):
        found = {name: part(maps).vectors for name, part in self.parts.items()}
        return Views(
            {
                f"{n}_{view}_{head}": vector
                for n, v in found.items()
                for view, vector in v.items()
                for head in self.heads
            }
        )


@functools.lru_cache(maxsize=1)
def everything(backbone: str, options: tuple[tuple[str, object], ...] = (), size: tuple[int, int] = (64, 32)) -> Model:
    """Return a model with all aggregators that go with a backbone, and all heads."""
    torch.manual_seed(0)
    network = config("backbone", backbone, **{**OPTIONS.get(backbone, {}), **dict(options)}).build(*size)
    parts = {}
    for component in CATALOG.components("aggregator"):
        try:
            parts[component.name] = config("aggregator", component.name).build(network)
        except (ContractError, KeyError):  # `AGGREGATORS` says which
            continue
    heads = [component.name for component in CATALOG.components("head")]
    every = Every(parts, heads)
    built = {view: config("head", view.rpartition("_")[2]).build(dim, 3) for view, dim in every.views.items()}
    return seem_trained(Model(network, every, built))


@functools.cache
def people(size: tuple[int, int]) -> np.ndarray:
    """Return drawings of people, (32, H, W, 3) uint8."""
    samples = CATALOG.build("dataset", "core:synthetic", {"identities": 8, "images": 2}).train
    resize = Resize(*size)
    return np.stack([resize(read_image(sample)).permute(1, 2, 0).numpy() for sample in samples[::2][:32]])


def compare(model: Model, artifact, tolerance: float, size: tuple[int, int] = (64, 32)) -> set[str]:
    """Compare the embedding of each view; return the names of the aggregators."""
    images = people(size)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).after
    dims = [model.heads[view].dim for view in model.aggregator.embed]
    for count in BATCHES:
        embedding = torch.from_numpy(artifact.run(images[:count])["embedding"])
        for view, found in zip(model.aggregator.embed, embedding.split(dims, 1), strict=True):
            difference = 1 - torch.cosine_similarity(found, expected[view][:count])
            assert difference.max() <= tolerance, (view, count)
    return set(model.aggregator.parts)


BACKBONES = [
    pytest.param(item.name, marks=[] if item.name in QUICK else pytest.mark.slow)
    for item in CATALOG.components("backbone")
]
VARIANTS = {
    "ibn-a and squeeze-excitation": ("resnet50", {"ibn": "a", "se": True}, (64, 32)),
    "ibn-b and odd sizes": ("resnet18", {"ibn": "b"}, (75, 45)),
    "a stem that rounds up": ("resnet18", {"stem_pool": "ceil", "stem_stride": 4, "last_stride": 2}, (110, 70)),
    "osnet with instance norms": ("osnet-x0.25", {"ibn": True}, (64, 32)),
}


def expected(backbone: str) -> set[str]:
    """Return the aggregators of the core, and of plugins for images of 64x32, that go with a backbone."""
    if backbone.startswith("vit"):  # a class token: one position, which may be negative
        return {"avg", "max", "avg-max", "identity"}
    return {*PLAIN, "attention", *({"mgn"} if backbone.startswith("res") else ())}


def without(model: Model, aggregators: set[str]) -> Model:
    """Return a model without some aggregators."""
    parts = {name: part for name, part in model.aggregator.parts.items() if name not in aggregators}
    every = Every(parts, model.aggregator.heads)
    return Model(model.backbone, every, {view: model.heads[view] for view in every.views}).eval()


def write_and_compare(model: Model, folder: Path, caffe: bool, size: tuple[int, int] = (64, 32)) -> set[str]:
    """Write a model as ONNX, and as Caffe's files, of one trace, and compare."""
    about = About.of(model, *size)
    graph = trace(model, about)
    onnx.save(graph, folder / "model.onnx")
    aggregators = compare(model, OnnxArtifact(folder / "model.onnx"), 1e-4, size)
    if caffe:
        compare(model, CaffeExporter().write(graph, folder, about), 1e-3, size)
    return aggregators


@pytest.mark.parametrize("name", BACKBONES)
def test_the_product_is_written(name: str, tmp_path: Path) -> None:
    caffe = name.startswith((*RESNETS, "osnet")) and not name.startswith("resnest")
    if caffe:
        pytest.importorskip("cv2")
    found = write_and_compare(without(everything(name), {"attention"} if caffe else set()), tmp_path, caffe)
    assert found == {name for name in expected(name) if not caffe or name != "attention"}


@pytest.mark.parametrize(
    "name", ["vit-tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK if name != "vit-tiny")]
)
def test_coarser_precisions_of_every_kind_of_network_stay_close(name: str, tmp_path: Path) -> None:
    model = without(everything(name), {"mgn", "dsr", "attention"})
    graph = trace(model, About.of(model, 64, 32))
    for coarser, tolerance in ((to_float16(graph), 1e-3), (quantize(graph, people((64, 32))), 0.05)):
        onnx.save(coarser, tmp_path / "model.onnx")
        assert compare(model, OnnxArtifact(tmp_path / "model.onnx"), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.values[0] for case in BACKBONES])
def test_attention_is_written_as_onnx(name: str, tmp_path: Path) -> None:
    model = everything(name)
    if "attention" not in model.aggregator.parts:
        pytest.skip("the last map has one position")
    model = without(model, set(model.aggregator.parts) - {"attention"})
    assert write_and_compare(model, tmp_path, caffe=False) == {"attention"}


@pytest.mark.parametrize(("name", "options", "size"), VARIANTS.values(), ids=VARIANTS)
def test_variants_are_written_as_both(name: str, options: dict, size: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    model = without(everything(name, tuple(options.items()), size), {"attention", "mgn", "dsr"})
    assert write_and_compare(model, tmp_path, True, size) == PLAIN


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("resnet18", {"non_local": (0, 1, 0, 0), "stages": 2}, "backbone.NL_2.0"),
        ("resnet18", {"stages": 1}, "aggregator.parts.attention"),
        pytest.param("vit-tiny", {}, "backbone", marks=pytest.mark.slow),
    ],
)
def test_what_caffe_cannot_express_is_named(name: str, options: dict, layer: str, tmp_path: Path) -> None:
    model = copy.copy(everything(name, tuple(options.items())))
    with pytest.raises(ContractError, match=f"Caffe has no layer for '{layer}"):
        CaffeExporter().export(model, np.empty(0), tmp_path, About.of(model, 64, 32))
    assert list(tmp_path.iterdir()) == []
