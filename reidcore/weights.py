"""Where weights come from: a published file, a file of one's own, or nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reidcore.errors import ReidError

Adapt = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def leave_out(*prefixes: str) -> Adapt:
    """Return a function that returns a state dict without what starts with one of `prefixes`."""
    return lambda state: {key: value for key, value in state.items() if not key.startswith(prefixes)}


def load_weights(
    network: nn.Module,
    name: str,
    weights: str,
    url: str = "",
    *,
    adapt: Adapt = dict,
    new: tuple[str, ...] = (),
) -> None:
    """Load weights into `network`, called `name` in messages.

    "imagenet" is the file at `url`, whose name ends in a hyphen and the beginning of its SHA-256; "zoo:NAME" is the
    backbone of a published checkpoint, see `reidcore.zoo`; "none" is nothing; anything else is a file. `adapt` makes
    the network's state dict of the file's; what starts with one of `new` may be missing from it, though not from a
    published checkpoint.

    Raises ReidError when the file is not there and cannot be fetched, or does not fit. On the meta device, where only
    shapes are checked, nothing is fetched or read.
    """
    from reidcore import zoo

    meta = next(network.parameters()).is_meta
    published = zoo.find(weights) if weights.startswith(zoo.PREFIX) else None
    if weights == "imagenet" and not url:
        raise ReidError(
            f"backbone.weights: found 'imagenet', but no file of {name} is published; expected 'none' or a file"
        )
    if weights == "none" or (meta and (published or weights == "imagenet")):
        return
    path = published.fetch() if published else fetch(url) if weights == "imagenet" else Path(weights)
    if not path.is_file():
        raise ReidError(f"backbone.weights: found '{path}', which is no file; expected 'imagenet', 'none' or a file")
    if meta:
        return
    form = ""
    if published:
        state, form = zoo.read_backbone(path)
        state, new = adapt(state), ()
    else:
        state = adapt(read_state(path))
    own = network.state_dict()
    needed = [key for key in own if not key.startswith(new) and not key.endswith("num_batches_tracked")]
    wrong = [
        *(f"lacks {key}" for key in needed if key not in state),
        *(f"has {key}" for key in state if key not in own),
        *(f"has another shape of {key}" for key in state if key in own and state[key].shape != own[key].shape),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ReidError(f"backbone.weights: {path} does not fit {name}: it {', '.join(wrong[:3])}{more}{form}")
    network.load_state_dict(state, strict=False)


def fetch(
    url: str, sha256: str | None = None, *, key: str = "backbone.weights", of: str = "the published file"
) -> Path:
    """Return the file at `url` from torch's cache; it is fetched when it is not there.

    sha256: its beginning, "" for any; the name of the file ends in it when absent. key: of the recipe, which messages
    begin with, "" when no recipe asks. of: what a message calls the file with this hash.

    Raises ReidError when it cannot be fetched, and when what is there has another hash.
    """
    file = cached(url)
    expected = file.stem.rpartition("-")[2] if sha256 is None else sha256
    where = f"{key}: " if key else ""
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=expected or None)
        except (OSError, RuntimeError, HTTPException) as error:
            instead = ', or write weights = "none" to start from random weights' if key else ""
            raise ReidError(
                f"{where}cannot fetch {url} ({error}); put the file {file.name} into {file.parent}{instead}"
            ) from None
    found, shown = hash_of(file), min(16, len(expected))
    if not found.startswith(expected):
        raise ReidError(
            f"{where}{file} is not {of}, whose SHA-256 begins with {expected[:shown]}: its own begins "
            f"with {found[:shown]}; put the right one there, or delete it to have it fetched"
        )
    return file


def cached(url: str) -> Path:
    """Return where torch keeps the file at `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def hash_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in `path`, safetensors or what `torch.save` writes, without executing code in it.

    Raises ReidError when it is damaged or something else.
    """
    from reidcore.checkpoint import load_tensors

    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own advice is to run the code in the file
        raise ReidError(
            f"backbone.weights: cannot read {path}, which is damaged or holds more than tensors "
            f"({type(error).__name__}); expected what torch.save(model.state_dict(), FILE) writes, or safetensors"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ReidError(f"backbone.weights: {path} is not a state dict: a dict of names and tensors")
    return state


def read_checkpoint(file: Path, key: str) -> dict[str, Tensor]:
    """Return the state dict in a training's checkpoint, under `key` or by itself, without executing code in it.

    The prefix that training on several devices leaves is taken off its names. Raises ReidError when it is something
    else.
    """
    if not file.is_file():
        raise ReidError(f"there is no file {file}")
    if file.suffix == ".safetensors":
        return read_state(file)
    kinds = [type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4")]
    numpy_scalars: Any = [np._core.multiarray.scalar, np.dtype, *kinds]  # type: ignore[attr-defined]
    try:
        with torch.serialization.safe_globals(numpy_scalars):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own advice is to run the code in the file
        raise ReidError(
            f"cannot read {file}, which is damaged or holds more than tensors and numbers ({type(error).__name__}). If "
            f"you trust where it comes from, leave the rest out once: python -c \"import torch; torch.save({{'{key}': "
            f"torch.load('{file}', map_location='cpu', weights_only=False)['{key}']}}, 'weights.pth')\""
        ) from None
    state = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ReidError(f"{file} holds no state dict, neither alone nor as '{key}'")
    return {name.removeprefix("module."): value for name, value in state.items()}
