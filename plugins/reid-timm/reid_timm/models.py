"""timm's models by name, with the weights that are asked for."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg

from reidcore.errors import ContractError, ReidError
from reidcore.weights import leave_out, read_state


def published(name: str) -> PretrainedCfg:
    """Return what timm says of the weights of model `name`, which may end in their tag: "resnet18.a1_in1k".

    Raises ReidError, with the nearest names, when there is no such model or tag.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 3)
        hint = f"did you mean {_join(near)}?" if near else "timm.list_models() returns those that there are"
        raise ReidError(f"backbone.model: timm {timm.__version__} has no model '{architecture}'; {hint}")
    try:
        settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        tagged = [other for other in timm.list_pretrained() if other.startswith(f"{architecture}.")]
        hint = f"write {_join([architecture, *tagged])}"
        raise ReidError(
            f"backbone.model: timm {timm.__version__} has no weights '{tag}' of {architecture}; {hint}"
        ) from None
    assert settings is not None
    return settings


def create(name: str, weights: str, **options: Any) -> Any:
    """Build model `name` with timm's `options` and without the classifier's weights.

    `weights` are "pretrained", which timm fetches, "none", or a file with the model's names. timm's own conversion fits
    them to the model, which resizes position embeddings. On the meta device nothing is fetched or read.

    Raises ReidError when the weights are not there or do not fit, ContractError when the model lacks an option.
    """
    settings = published(name)
    meta = torch.get_default_device().type == "meta"
    path = Path(weights)
    if weights == "pretrained" and not settings.has_weights:
        raise ReidError(f'backbone.weights: timm has no weights of {name}; write weights = "none" or a file')
    if weights not in ("pretrained", "none") and not path.is_file():
        raise ReidError(f"backbone.weights: found '{path}', which is no file; expected 'pretrained', 'none' or a file")
    if weights == "none" or meta:
        try:
            return timm.create_model(name, num_classes=0, **options)
        except Exception as error:  # each model has its own way to refuse an option
            given = ", ".join(f"{key} = {value}" for key, value in options.items())
            raise ContractError(
                f"backbone: timm cannot build {name} with {given or 'its own options'} ({_say(error)}); "
                "leave out what it does not have, change the input size or take another model"
            ) from None
    if weights == "pretrained":
        try:
            return timm.create_model(name, num_classes=0, pretrained=True, **options)
        except Exception as error:  # of the file system, of two libraries that fetch, or of torch
            raise ReidError(
                f"backbone.weights: cannot load the weights of {name} ({_say(error)}); fetch {_address(settings)} "
                'elsewhere and write weights = "FILE", or write weights = "none" to start from random weights'
            ) from None
    heads = settings.classifier or ()
    adapt = leave_out(*(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads)))
    # without a classifier on either side, timm requires that each name be found
    overlay = {"state_dict": adapt(read_state(path)), "num_classes": 0, "label_offset": None}
    try:
        model: Any = timm.create_model(name, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # the conversions look for what tells formats apart, and may trip over any file
        # all of it: timm's message lists each weight
        raise ReidError(f"backbone.weights: {path} does not fit {name}: {_say(error, None)}") from None
    del model.pretrained_cfg["state_dict"]
    return model


def _address(settings: PretrainedCfg) -> str:
    if settings.hf_hub_id:
        file = settings.hf_hub_filename or "model.safetensors"
        return f"https://huggingface.co/{settings.hf_hub_id}/resolve/main/{file}"
    return str(settings.url)


def _say(error: Exception, most: int | None = 300) -> str:
    text = " ".join(str(error).split())
    return (shorten(text, most, placeholder=" ...") if most else text) or type(error).__name__


def _join(names: list[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
