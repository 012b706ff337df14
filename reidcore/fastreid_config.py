"""FastReID's YAML configurations as recipes. What a file leaves out has FastReID's default."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from reidcore.errors import RunError, os_message

# name, folder below the root, training images
_DATASETS = {
    "Market1501": ({"name": "market1501", "root": "datasets/Market-1501-v15.09.15"}, 12936),
    "DukeMTMC": ({"name": "dukemtmc", "root": "datasets/DukeMTMC-reID"}, 16522),
    "MSMT17": ({"name": "msmt17", "root": "datasets/MSMT17_V1"}, 30248),
    "CUHK03": ({"name": "cuhk03", "root": "datasets/cuhk03"}, 7368),
    "VeRi": ({"name": "veri776", "root": "datasets/veri"}, 37778),
    "VehicleID": ({"name": "vehicleid", "root": "datasets/vehicleid", "size": "all"}, 113346),
    "VeRiWild": ({"name": "veri-wild", "root": "datasets/VERI-Wild", "size": "large"}, 277797),
    **{
        f"{size}{name}": ({**table, "size": size.lower()}, count)
        for name, table, count in (
            ("VehicleID", {"name": "vehicleid", "root": "datasets/vehicleid"}, 113346),
            ("VeRiWild", {"name": "veri-wild", "root": "datasets/VERI-Wild"}, 277797),
        )
        for size in ("Small", "Medium", "Large")
    },
}
_BACKBONES = {"build_resnet_backbone": "resnet", "build_resnest_backbone": "resnest"}
_NON_LOCAL = {"50x": [0, 2, 3, 0], "101x": [0, 2, 9, 0]}
_POOLS: dict[str, dict[str, Any]] = {
    "GlobalAvgPool": {"name": "avg"},
    "FastGlobalAvgPool": {"name": "avg"},
    "GlobalMaxPool": {"name": "max"},
    "AdaptiveAvgMaxPool": {"name": "avg-max"},
    "GeneralizedMeanPooling": {"name": "gem", "learn": False},
    "GeneralizedMeanPoolingP": {"name": "gem", "learn": True},
    "Identity": {"name": "identity"},
}
_MARGINS = {"CircleSoftmax": "circle", "ArcSoftmax": "arcface", "CosSoftmax": "cosface"}
_PAIRS = {"CircleLoss": ("pair-circle", "CIRCLE"), "Cosface": ("pair-cosface", "COSFACE")}
_SAMPLERS = {
    "NaiveIdentitySampler": "naive",
    "BalancedIdentitySampler": "identity-balanced",
    "TrainingSampler": "shuffle",
}
_ELSEWHERE = {
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "INPUT.SIZE_TEST",
    "MODEL.BACKBONE.FEAT_DIM",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "MODEL.DEVICE",
    "MODEL.HEADS.NAME",
    "MODEL.HEADS.NUM_CLASSES",
    "MODEL.META_ARCHITECTURE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "OUTPUT_DIR",
    "SOLVER.AMP.ENABLED",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.IMS_PER_BATCH",
    "VERSION",
}
"""Keys whose place here is another one: the machine's, the data's, or the part's own."""


def read_config(file: Path) -> dict[str, Any]:
    """Return a configuration as `{dotted key: value}`, with those that it is based on. Raises RunError."""
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise RunError(os_message(error, "read", file)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise RunError(f"{file} holds no configuration of FastReID")
    base = found.pop("_BASE_", None)
    return {**(read_config(file.parent / str(base)) if base else {}), **dict(_flat(found))}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(item)


def _plain(value: Any) -> Any:
    """Return a tuple for a text that is one, as FastReID's reader does."""
    if isinstance(value, str) and value[:1] in "([":
        try:
            return literal_eval(value)
        except (SyntaxError, ValueError):
            return value
    return value


class _Config:
    """What a configuration says, with FastReID's defaults, and which keys were looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.seen = values, set[str]()

    def __call__(self, key: str, default: Any) -> Any:
        self.seen.add(key)
        return self.values.get(key, default)


def to_recipe(values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe, and what of the configuration it has no counterpart of, as `KEY = value`."""
    take, left = _Config(values), list[str]()
    sets = [str(data) for data in take("DATASETS.NAMES", ("Market1501",))]
    tests = [str(data) for data in take("DATASETS.TESTS", ("Market1501",))]
    unknown = sorted({data for data in (*sets, *tests) if data not in _DATASETS})
    left += [f"data set {data}" for data in unknown]
    batch, each = take("SOLVER.IMS_PER_BATCH", 64), take("DATALOADER.NUM_INSTANCE", 4)
    images = sum(_DATASETS[data][1] for data in sets if data in _DATASETS)
    height, width = take("INPUT.SIZE_TRAIN", (256, 128))
    recipe: dict[str, Any] = {"run": {"name": name}}
    if requires := _requires(str(take("MODEL.BACKBONE.NAME", "build_resnet_backbone"))):
        recipe["requires"] = requires
    recipe |= {
        "train": [dict(_DATASETS[data][0]) for data in sets if data in _DATASETS],
        "test": [{**_DATASETS[data][0], "label": data} for data in tests if data in _DATASETS],
        "input": {"height": height, "width": width},
        "transform": _transforms(take, left, height, width),
        "sampler": _sampler(take, left, batch, each),
        "backbone": _backbone(take, left),
        "aggregator": _pool(take, left),
        "head": _head(take, left),
        "loss": _losses(take, left),
        "optimizer": _optimizer(take, left),
        "scheduler": _schedule(take, left, images // batch),
        "training": _training(take),
        "evaluation": {
            "every": take("TEST.EVAL_PERIOD", 20),
            "flip": take("TEST.FLIP.ENABLED", False),
            "distance": take("TEST.METRIC", "cosine"),
        },
    }
    if chain := _chain(take, left):
        recipe["test"] = [{**test, "postprocess": chain} for test in recipe["test"]]
    left += [f"{key} = {value}" for key, value in values.items() if key not in take.seen and key not in _ELSEWHERE]
    return recipe, left


def _requires(backbone: str) -> list[str]:
    return ["reid-resnest>=0.1"] if "resnest" in backbone else []


def _chain(take: _Config, left: list[str]) -> list[dict[str, Any]]:
    """Return what is done to embeddings and distances at the test."""
    found: list[dict[str, Any]] = []
    k, alpha, times = take("TEST.AQE.QE_K", 5), take("TEST.AQE.ALPHA", 3.0), take("TEST.AQE.QE_TIME", 1)
    if take("TEST.AQE.ENABLED", False):
        # it counts the image itself as one of the k
        found += [{"name": "query-expansion", "k": k - 1, "alpha": alpha, "database": True}] * times
        left.append("TEST.AQE: there the neighbours are of queries and gallery together, here of the gallery")
    k1, k2, share = take("TEST.RERANK.K1", 20), take("TEST.RERANK.K2", 6), take("TEST.RERANK.LAMBDA", 0.3)
    if take("TEST.RERANK.ENABLED", False):
        found.append({"name": "k-reciprocal", "k1": k1, "k2": k2, "weight": share})
    return found


def _transforms(take: _Config, left: list[str], height: int, width: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if take("INPUT.AUTOAUG.ENABLED", False):
        found.append({"name": "auto-augment", "probability": take("INPUT.AUTOAUG.PROB", 0.0)})
    area, ratio = take("INPUT.CROP.SCALE", (0.16, 1)), take("INPUT.CROP.RATIO", (3 / 4, 4 / 3))
    size = tuple(take("INPUT.CROP.SIZE", (224, 224)))
    if take("INPUT.CROP.ENABLED", False):
        found.append({"name": "random-resized-crop", "area": list(area), "ratio": list(ratio)})
        if size != (height, width):
            left.append(f"INPUT.CROP.SIZE = {size}, which is another size than INPUT.SIZE_TRAIN")
    else:
        found.append({"name": "resize"})
    if take("INPUT.FLIP.ENABLED", take("INPUT.DO_FLIP", False)):
        found.append({"name": "flip", "probability": take("INPUT.FLIP.PROB", take("INPUT.FLIP_PROB", 0.5))})
    if take("INPUT.PADDING.ENABLED", take("INPUT.DO_PAD", False)):
        found.append({"name": "pad-crop", "padding": take("INPUT.PADDING.SIZE", take("INPUT.PADDING_SIZE", 10))})
    jitter = {
        "probability": take("INPUT.CJ.PROB", 0.5),
        "brightness": take("INPUT.CJ.BRIGHTNESS", 0.15),
        "contrast": take("INPUT.CJ.CONTRAST", 0.15),
        "saturation": take("INPUT.CJ.SATURATION", 0.1),
        "hue": take("INPUT.CJ.HUE", 0.1),
    }
    mixed, erased, patched = take("INPUT.AUGMIX.PROB", 0.0), take("INPUT.REA.PROB", 0.5), take("INPUT.RPT.PROB", 0.5)
    for part, table in (
        ("CJ", {"name": "color-jitter", **jitter}),
        ("AFFINE", {"name": "affine"}),
        ("AUGMIX", {"name": "augmix", "probability": mixed, "severity": 1, "depth": 1, "alpha": 0.1}),
        ("REA", {"name": "random-erasing", "probability": erased}),
        ("RPT", {"name": "random-patch", "probability": patched}),
    ):
        if take(f"INPUT.{part}.ENABLED", False):
            found.append(table)
    return found


def _sampler(take: _Config, left: list[str], batch: int, each: int) -> dict[str, Any]:
    given = str(take("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"))
    if given not in _SAMPLERS:
        left.append(f"DATALOADER.SAMPLER_TRAIN = {given}")
    name = _SAMPLERS.get(given, "identity-balanced")
    return (
        {"name": name, "batch": batch}
        if name == "shuffle"
        else {"name": name, "identities": batch // each, "instances": each}
    )


def _backbone(take: _Config, left: list[str]) -> dict[str, Any]:
    given, depth = str(take("MODEL.BACKBONE.NAME", "build_resnet_backbone")), str(take("MODEL.BACKBONE.DEPTH", "50x"))
    ibn, se = take("MODEL.BACKBONE.WITH_IBN", False), take("MODEL.BACKBONE.WITH_SE", False)
    attention = take("MODEL.BACKBONE.WITH_NL", False)
    if given not in _BACKBONES:
        left.append(f"MODEL.BACKBONE.NAME = {given}")
    if take("MODEL.BACKBONE.NORM", "BN") != "BN":
        left.append(f"MODEL.BACKBONE.NORM = {take('MODEL.BACKBONE.NORM', 'BN')}")
    kind = _BACKBONES.get(given, "resnet")
    table = {
        "name": kind + depth.removesuffix("x"),
        "last_stride": take("MODEL.BACKBONE.LAST_STRIDE", 1),
        "weights": "imagenet" if take("MODEL.BACKBONE.PRETRAIN", False) else "none",
    }
    if kind == "resnest":  # for which the reference takes these and does not heed them
        return table
    if ibn:
        table["ibn"] = "a"
    if se:
        table["se"] = True
    if attention:
        if depth not in _NON_LOCAL:
            left.append(f"MODEL.BACKBONE.WITH_NL = True for depth {depth}")
        else:
            table |= {"non_local": _NON_LOCAL[depth], "non_local_channels": 1}
    return table


def _pool(take: _Config, left: list[str]) -> dict[str, Any]:
    given = str(take("MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"))
    if given not in _POOLS:
        left.append(f"MODEL.HEADS.POOL_LAYER = {given}")
    return dict(_POOLS.get(given, {"name": "avg"}))


def _head(take: _Config, left: list[str]) -> dict[str, Any]:
    if dim := take("MODEL.HEADS.EMBEDDING_DIM", 0):
        left.append(f"MODEL.HEADS.EMBEDDING_DIM = {dim}")
    if take("MODEL.HEADS.NORM", "BN") != "BN":
        left.append(f"MODEL.HEADS.NORM = {take('MODEL.HEADS.NORM', 'BN')}")
    head = {"name": "bnneck" if take("MODEL.HEADS.WITH_BNNECK", False) else "linear"}
    if str(take("MODEL.HEADS.CLS_LAYER", "Linear")) in _MARGINS:
        head["classifier"] = "cosine"
    return head


def _losses(take: _Config, left: list[str]) -> list[dict[str, Any]]:
    names = take("MODEL.LOSSES.NAME", ("CrossEntropyLoss",))
    found: list[dict[str, Any]] = []
    for name in [names] if isinstance(names, str) else names:
        if name == "CrossEntropyLoss":
            layer = str(take("MODEL.HEADS.CLS_LAYER", "Linear"))
            loss: dict[str, Any] = {
                "name": _MARGINS.get(layer, "cross-entropy"),
                "smoothing": take("MODEL.LOSSES.CE.EPSILON", 0.0),
            }
            scale, margin = take("MODEL.HEADS.SCALE", 1), take("MODEL.HEADS.MARGIN", 0.0)
            if layer in _MARGINS:
                loss |= {"scale": scale, "margin": margin}
            elif layer != "Linear":
                left.append(f"MODEL.HEADS.CLS_LAYER = {layer}")
            loss["weight"] = float(take("MODEL.LOSSES.CE.SCALE", 1.0))
        elif name == "TripletLoss":
            margin = take("MODEL.LOSSES.TRI.MARGIN", 0.3)
            loss = {
                "name": "triplet",
                "mining": "hard" if take("MODEL.LOSSES.TRI.HARD_MINING", False) else "weighted",
                "normalize": take("MODEL.LOSSES.TRI.NORM_FEAT", False),
                "feature": take("MODEL.HEADS.NECK_FEAT", "before"),
                **({"margin": margin} if margin > 0 else {"soft": True}),
                "weight": float(take("MODEL.LOSSES.TRI.SCALE", 1.0)),
            }
        elif name in _PAIRS:
            part, key = _PAIRS[name]
            loss = {
                "name": part,
                "feature": take("MODEL.HEADS.NECK_FEAT", "before"),
                "margin": take(f"MODEL.LOSSES.{key}.MARGIN", 0.25),
                "scale": float(take(f"MODEL.LOSSES.{key}.GAMMA", 128)),
                "weight": float(take(f"MODEL.LOSSES.{key}.SCALE", 1.0)),
            }
        else:
            left.append(f"loss {name}")
            continue
        found.append(loss)
    return found


def _optimizer(take: _Config, left: list[str]) -> dict[str, Any]:
    given, decay = str(take("SOLVER.OPT", "Adam")), take("SOLVER.WEIGHT_DECAY", 5e-4)
    if given not in ("Adam", "SGD"):
        left.append(f"SOLVER.OPT = {given}")
    table: dict[str, Any] = {
        "name": "sgd" if given == "SGD" else "adam",
        "lr": take("SOLVER.BASE_LR", 3e-4),
        "weight_decay": decay,
    }
    momentum, nesterov = take("SOLVER.MOMENTUM", 0.9), take("SOLVER.NESTEROV", False)
    if given == "SGD":
        table |= {"momentum": momentum, "nesterov": nesterov}
    factors = {"bias": take("SOLVER.BIAS_LR_FACTOR", 1.0), "head": take("SOLVER.HEADS_LR_FACTOR", 1.0)}
    decays = {"bias": take("SOLVER.WEIGHT_DECAY_BIAS", decay), "norm": take("SOLVER.WEIGHT_DECAY_NORM", decay)}
    if changed := {part: factor for part, factor in factors.items() if factor != 1}:
        table["lr_factors"] = changed
    if decay and (changed := {part: other / decay for part, other in decays.items() if other != decay}):
        table["decay_factors"] = changed
    return table


def _schedule(take: _Config, left: list[str], steps: int) -> dict[str, Any]:
    """Return the scheduler, in epochs; FastReID counts the warm-up in iterations, and there are `steps` an epoch."""
    given, rate = str(take("SOLVER.SCHED", "MultiStepLR")), take("SOLVER.BASE_LR", 3e-4)
    warmup = take("SOLVER.WARMUP_ITERS", 1000)
    table: dict[str, Any] = {
        "unit": "epochs",
        "warmup": round(warmup / steps, 2) if steps else 0.0,
        "warmup_method": take("SOLVER.WARMUP_METHOD", "linear"),
        "start_factor": take("SOLVER.WARMUP_FACTOR", 0.1),
    }
    milestones, gamma = take("SOLVER.STEPS", (30, 55)), take("SOLVER.GAMMA", 0.1)
    flat, least = take("SOLVER.DELAY_EPOCHS", 0), take("SOLVER.ETA_MIN_LR", 1e-7)
    if given == "MultiStepLR":
        return {"name": "multistep", **table, "milestones": list(milestones), "gamma": gamma}
    if given != "CosineAnnealingLR":
        left.append(f"SOLVER.SCHED = {given}")
    return {"name": "warmup-cosine", **table, "flat_until": flat, "end_factor": float(f"{least / rate:.4g}")}


def _training(take: _Config) -> dict[str, Any]:
    table: dict[str, Any] = {"epochs": take("SOLVER.MAX_EPOCH", 120)}
    layers, count = take("MODEL.FREEZE_LAYERS", ()), take("SOLVER.FREEZE_ITERS", 0)
    if layers and count:
        table |= {"freeze": [layers] if isinstance(layers, str) else list(layers), "freeze_iterations": count}
    norm = take("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0)
    if take("SOLVER.CLIP_GRADIENTS.ENABLED", False):
        table["clip_norm"] = norm
    return table
