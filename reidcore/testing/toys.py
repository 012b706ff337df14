"""What tests of plugins run on: images in miniature, a recipe of seconds, and the command line in this process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple


def toy_data(folder: Path) -> Path:
    """Write a `folder` data set of 54 images of 20x12 pixels into `folder`, and return it.

    An identity is a colour: 6 to train on, with 3 images from each of 2 cameras, and 3 others to find.
    """
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, identities, images in (("train", range(6), 3), ("query", range(6, 9), 1), ("gallery", range(6, 9), 2)):
        (folder / split).mkdir(parents=True)
        for identity in identities:
            colour = np.random.default_rng(identity).integers(0, 256, 3)
            for camera in (1, 2):
                for number in range(images):
                    pixels = np.clip(colour + random.normal(0, 20, (20, 12, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / split / f"{identity:04d}_c{camera}_{split}{number}.png")
    return folder


def tiny_recipe(folder: Path, **tables: Any) -> Path:
    """Write toy data and a recipe that trains on them in a second or two into `folder`, and return the recipe's file.

    `tables` replace those of the recipe, or are added: `tiny_recipe(tmp_path, aggregator={"name": "maxpool"})`.
    """
    import tomli_w

    root = folder / "toy"
    if not root.exists():
        toy_data(root)
    recipe: Mapping[str, Any] = {
        "run": {"output": str(folder / "runs"), "device": "cpu", "report": False},
        "train": [{"name": "folder", "root": str(root)}],
        "test": [{"name": "folder", "root": str(root)}],
        "input": {"height": 32, "width": 16, "workers": 0},
        "transform": [{"name": "flip"}],
        "sampler": {"name": "identity-balanced", "identities": 3, "instances": 2},
        "backbone": {"name": "resnet18", "base": 16, "weights": "none"},
        "training": {"epochs": 2, "precision": "float32"},
    }
    file = folder / "toy.toml"
    file.write_text(tomli_w.dumps({**recipe, **tables}), encoding="utf-8")
    return file


def seem_trained(model: Any, seed: int = 0) -> Any:
    """Give every batch and instance norm of a model what a training could have left, and return it, evaluating.

    As it begins a norm changes next to nothing, and files that leave norms out would pass for equal. Scales that begin
    at 0, at the end of residual branches, stay small: else a deep network's values explode, and with them rounding.
    """
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    random = torch.Generator().manual_seed(seed)

    def between(tensor: Any, low: float, high: float) -> None:
        if tensor is not None:
            tensor.copy_(torch.rand(tensor.shape, generator=random) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (_BatchNorm, _InstanceNorm, nn.LayerNorm)):
                grows = module.weight is None or module.weight.any()
                between(module.weight, *((0.5, 1.5) if grows else (0.1, 0.3)))
                between(module.bias, -0.2, 0.2)
                between(getattr(module, "running_mean", None), -0.2, 0.2)
                between(getattr(module, "running_var", None), 0.5, 1.5)
    return model.eval()


class Done(NamedTuple):
    """What a command came to: its exit status, and what it wrote to standard output and to standard error."""

    status: int
    out: str
    err: str


def run_cli(*arguments: object) -> Done:
    """Run the command line in this process: `run_cli("check", file)` is `reidcore check FILE`."""
    from reidcore.cli import main

    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # of --help, --version and unknown arguments
            status = end.code if isinstance(end.code, int) else 1
    return Done(status, out.getvalue(), err.getvalue())
