"""Where a backbone's weights come from: a published file, a file of one's own, or nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

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
    """Load "imagenet" (the file at `url`), a file, or nothing ("none") into `network`, called `name` in messages.

    The name of the file at `url` ends in a hyphen and the beginning of its SHA-256. `adapt` makes the network's state
    dict of the file's; what starts with one of `new` may be missing from it.

    Raises ReidError when the file is not there and cannot be fetched, or does not fit. On the meta device, where only
    shapes are checked, nothing is fetched or read.
    """
    meta = next(network.parameters()).is_meta
    if weights == "imagenet" and not url:
        raise ReidError(
            f"backbone.weights: found 'imagenet', but no file of {name} is published; expected 'none' or a file"
        )
    if weights == "none" or (weights == "imagenet" and meta):
        return
    path = fetch(url) if weights == "imagenet" else Path(weights)
    if not path.is_file():
        raise ReidError(f"backbone.weights: found '{path}', which is no file; expected 'imagenet', 'none' or a file")
    if meta:
        return
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
        raise ReidError(f"backbone.weights: {path} does not fit {name}: it {', '.join(wrong[:3])}{more}")
    network.load_state_dict(state, strict=False)


def fetch(url: str) -> Path:
    """Return the file at `url`, whose name ends in its hash, from torch's cache; it is fetched when it is not there.

    Raises ReidError when it cannot be fetched, and when what is there has another hash.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2])
        except (OSError, RuntimeError, HTTPException) as error:
            raise ReidError(
                f"backbone.weights: cannot fetch {url} ({error}); put the file {file.name} into {file.parent}, "
                'or write weights = "none" to start from random weights'
            ) from None
    with file.open("rb") as stream:
        found, expected = hashlib.file_digest(stream, "sha256").hexdigest(), file.stem.rpartition("-")[2]
    if not found.startswith(expected):
        raise ReidError(
            f"backbone.weights: {file} is not the published file, whose SHA-256 begins with {expected}: its own begins "
            f"with {found[:8]}; put the right one there, or delete it to have it fetched"
        )
    return file


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
