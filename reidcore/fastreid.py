"""Checkpoints of FastReID: old and new names of weights, and what these say of the architecture.

Its file is a dict with the state dict under "model". Names changed twice, in September 2020 and in March 2021; most
published files have the old ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reidcore.errors import RunError

_RESNETS = {
    ((2, 2, 2, 2), False, 64): "resnet18",
    ((3, 4, 6, 3), False, 64): "resnet34",
    ((3, 4, 6, 3), True, 64): "resnet50",
    ((3, 4, 23, 3), True, 64): "resnet101",
    ((3, 8, 36, 3), True, 64): "resnet152",
    ((3, 4, 6, 3), True, 4): "resnext50-32x4d",
    ((3, 4, 23, 3), True, 4): "resnext101-32x4d",
    ((3, 4, 23, 3), True, 8): "resnext101-32x8d",
}
"""Networks by the blocks of their stages, whether these are bottlenecks, and the channels of a group in stage 1."""

_RESNESTS = {
    (3, 4, 6, 3): "resnest50",
    (3, 4, 23, 3): "resnest101",
    (3, 24, 36, 3): "resnest200",
    (3, 30, 48, 8): "resnest269",
}

_PUBLISHED = re.compile(r"(market|duke|msmt|veri|vehicleid|veriwild)_(bot|agw|sbs|mgn)_(?:R50|S50|R101)(?:-ibn)?\.pth")
_DATA = {
    "market": ("market1501", "datasets/Market-1501-v15.09.15"),
    "duke": ("dukemtmc", "datasets/DukeMTMC-reID"),
    "msmt": ("msmt17", "datasets/MSMT17_V1"),
    "veri": ("veri776", "datasets/veri"),
    "vehicleid": ("vehicleid", "datasets/vehicleid"),
    "veriwild": ("veri-wild", "datasets/VERI-Wild"),
}


def renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return a state dict by this project's names, and whether it had the old ones.

    Raises RunError for the multi-granularity network as it was before September 2020, and for other pixel statistics.
    """
    if any(key.startswith("b1_pool.") for key in state):
        raise RunError(
            "it is a multi-granularity network from before September 2020, with a ReLU before its necks, which "
            "FastReID's later code does not have either; train it again: examples/mgn.toml"
        )
    old = any(key.startswith(("heads.bnneck.", "heads.classifier.")) for key in state)
    granular = any(key.startswith("b1_head.") for key in state)
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in ("pixel_mean", "pixel_std"):
            _check_pixels(key, value)
        elif key == "heads.bnneck.num_batches_tracked" and "heads.bottleneck.0.weight" in state:
            continue  # a published file was renamed by halves
        else:
            name, value = _granular(key, value) if granular else (_plain(key), value)
            found[name] = value
    if granular:  # the backbone's own last stages, which nothing reads
        rest = 1 + max(int(k.split(".")[3]) for k in found if k.startswith("aggregator.tails.b1.")) - 3
        for key in [k for k in found if k.startswith("aggregator.tails.b1.")]:
            number, inner = int(key.split(".")[3]), key.split(".", 4)[4]
            place = f"layer3.{number + 1}" if number < rest else f"layer4.{number - rest}"
            found[f"backbone.{place}.{inner}"] = found[key].clone()
    return found, old


def _check_pixels(key: str, value: Tensor) -> None:
    expected = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}[key]
    if not torch.allclose(value.flatten().float(), torch.tensor(expected), atol=0.1):
        raise RunError(f"its {key} is {value.flatten().tolist()}; expected ImageNet's, {list(expected)}")


def _plain(key: str) -> str:
    for old, new in (
        (r"heads\.(?:bnneck|bottleneck\.0)\.(.+)", r"heads.global.norm.\1"),
        (r"heads\.(?:classifier\.weight|weight)", "heads.global.classifier.weight"),
        (r"heads\.pool_layer\.p", "aggregator.pool.alpha"),
    ):
        if match := re.fullmatch(old, key):
            return match.expand(new)
    return key


_GRANULAR = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3.0"}


def _granular(key: str, value: Tensor) -> tuple[str, Tensor]:
    """Return the name, and the shape, of a weight of the multi-granularity network."""
    if match := re.fullmatch(r"backbone\.([01456])\.(.+)", key):
        return f"backbone.{_GRANULAR[match[1]]}.{match[2]}", value
    if match := re.fullmatch(r"(b[123])\.0\.(\d+)\.(.+)", key):
        return f"aggregator.tails.{match[1]}.{match[2]}.{match[3]}", value
    if match := re.fullmatch(r"(b[123])\.1\.([012])\.(.+)", key):
        return f"aggregator.tails.{match[1]}.{int(match[2]) + 5}.{match[3]}", value
    if match := re.fullmatch(r"(b\d+)_head\.(.+)", key):
        view, part = match[1], match[2]
        if part == "pool_layer.p":
            return f"aggregator.exponents.{view}.alpha", value
        if part == "bottleneck.0.weight":
            return f"aggregator.reductions.{view}.0.weight", value.flatten(1)
        if part == "weight":
            return f"heads.{view}.classifier.weight", value
        return f"heads.{view}.norm.{part.removeprefix('bottleneck.1.')}", value
    return key, value


def architecture(state: Mapping[str, Tensor], name: str, old: bool) -> dict[str, Any]:
    """Return the tables of a recipe that build the network which a renamed state dict is of.

    name: of the file; that of a published one says what weights do not. old: whether it had the old names.
    """
    published = _PUBLISHED.fullmatch(name)
    data, method = published.groups() if published else (None, None)
    dataset, root = _DATA[data] if data else ("folder", "data")
    tables: dict[str, Any] = {
        "train": [{"name": dataset, "root": root}],
        "test": [{"name": dataset, "root": root}],
        "backbone": backbone(state, old),
        "head": {"name": "bnneck"},
        "evaluation": {"flip": False},
    }
    if tables["backbone"]["name"].startswith("resnest"):
        tables["requires"] = ["reid-resnest>=0.1"]
    if data in ("veri", "vehicleid", "veriwild"):
        tables["input"] = {"height": 256, "width": 256}
    elif method:
        tables["input"] = {"height": 384 if method in ("sbs", "mgn") else 256, "width": 128}
    if "aggregator.reductions.b1.0.weight" in state:
        tables["aggregator"] = {"name": "mgn", "pooling": "gem", "activate": False}
    elif "aggregator.pool.alpha" in state:
        tables["aggregator"] = {"name": "gem", "learn": True}
        if tables["backbone"].get("non_local", [0])[-1]:
            tables["aggregator"]["signed"] = "rectify"
    elif method:
        gem = method != "bot" or data in ("vehicleid", "veriwild")
        tables["aggregator"] = {"name": "gem", "learn": False} if gem else {"name": "avg"}
    return tables


def backbone(state: Mapping[str, Tensor], old: bool) -> dict[str, Any]:
    """Return the table of the backbone in a renamed state dict: its depth, groups, norms and attention are in names and
    shapes.

    old: whether the dict had the old names. Raises RunError for a network that is not known.
    """

    def count(stem: str) -> int:
        """Return how many modules are called `stem` and a number."""
        numbers = [int(key[len(stem) :].partition(".")[0]) for key in state if key.startswith(stem)]
        return 1 + max(numbers, default=-1)

    blocks = tuple(count(f"backbone.layer{stage}.") for stage in (1, 2, 3, 4))
    table: dict[str, Any] = {"weights": "none", "last_stride": 1}
    if "backbone.conv1.0.weight" in state:
        if blocks not in _RESNESTS:
            raise RunError(f"its stages have {', '.join(map(str, blocks))} blocks, as no ResNeSt that is known")
        return {"name": _RESNESTS[blocks], **table}
    second = state.get("backbone.layer1.0.conv2.weight")
    bottleneck = "backbone.layer1.0.conv3.weight" in state
    groups = second.shape[1] if second is not None and bottleneck else 64
    if (name := _RESNETS.get((blocks, bottleneck, groups))) is None:  # type: ignore[arg-type]
        raise RunError(f"its stages have {', '.join(map(str, blocks))} blocks, as no ResNet or ResNeXt that is known")
    table = {"name": name, **table, "stem_pool": "pad1" if old else "ceil"}
    if "backbone.layer1.0.bn1.IN.weight" in state:
        table["ibn"] = "a"
    if "backbone.layer1.0.se.fc.0.weight" in state:
        table["se"] = True
    attention = [count(f"backbone.NL_{stage}.") for stage in (1, 2, 3, 4)]
    if any(attention):
        inner = next(value for key, value in state.items() if re.fullmatch(r"backbone\.NL_\d\.0\.g\.weight", key))
        table |= {"non_local": attention, "non_local_channels": len(inner)}
    return table
