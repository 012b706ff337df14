"""Write and read weights and training states without pickle: tensors as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from posixpath import commonpath
from typing import Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reidcore.errors import RunError, os_message

WEIGHTS = "model.safetensors"
"""The file in a run folder that holds the model which was evaluated."""


def save_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able metadata, so that `file` is at every moment either its old self or complete.

    Raises RunError when the disk is full or not writable.
    """
    partial = file.with_name(f".{file.name}.partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, partial, {key: json.dumps(value) for key, value in metadata.items()})
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{os_message(error, 'write', file)}; what was saved before is kept") from None
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {file}: {error}; what was saved before is kept") from None


def write_text(file: Path, text: str) -> None:
    """Write a text, so that `file` is at every moment either its old self or complete. Raises RunError if it cannot."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="replace")  # a file's name may be no text
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(os_message(error, "write", file)) from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file. Raises RunError when it is not one of these files or is damaged."""
    return _load(file)[0]


def load_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata of a file."""
    try:
        with safe_open(file, "pt") as stream:
            return {key: json.loads(value) for key, value in (stream.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error}") from None


@frozen
class Fit:
    """What a model took of another one's weights: a number of tensors, and the names of those that did not fit.

    only_here, only_there: those that the file or the model lacks; reshaped: `{name: (shape there, shape here)}`.
    """

    loaded: int
    only_here: Sequence[str]
    only_there: Sequence[str]
    reshaped: Mapping[str, tuple[Sequence[int], Sequence[int]]]

    def misfits(self) -> list[str]:
        """Return what did not fit as text, a line for each head, stage of the backbone and the like."""
        lines = []
        for module, names in _by_module(self.reshaped).items():
            there, here = (" x ".join(map(str, shape)) for shape in self.reshaped[names[0]])
            of = f"{len(names)} tensors of another shape, {names[0]}: " if len(names) > 1 else ""
            lines.append(f"{module}: {of}{there} there, {here} here")
        for where, misfits in (("only here, not loaded", self.only_here), ("only there, not used", self.only_there)):
            for module, names in _by_module(misfits).items():
                lines.append(f"{module}: {f'{len(names)} tensors ' if len(names) > 1 else ''}{where}")
        return lines


def _by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by their first two parts, and call each group by all the parts that it shares."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return {commonpath(n.replace(".", "/") for n in group).replace("/", "."): group for group in groups.values()}


def find_init(folder: Path) -> Path:
    """Return the weights in the folder that `[run] init` names. Raises RunError when there are none."""
    if not folder.is_dir():
        raise RunError(f"run.init: there is no folder {folder}; expected the folder of a finished run")
    if not (folder / WEIGHTS).is_file():
        raise RunError(f"run.init: {folder} has no {WEIGHTS}; expected the folder of a finished run")
    return folder / WEIGHTS


def load_fitting(model: nn.Module, file: Path) -> Fit:
    """Load each tensor of a file that has the name and shape of one of the model's; the others stay as they are.

    Raises RunError when no parameter is among them.
    """
    there, here = load_tensors(file), model.state_dict()
    loaded = {name: there[name] for name in here if name in there and there[name].shape == here[name].shape}
    if loaded.keys().isdisjoint(name for name, _ in model.named_parameters()):
        raise RunError(f"run.init: nothing in {file} fits this model; expected a run with the same backbone or head")
    model.load_state_dict(loaded, strict=False)
    return Fit(
        loaded=len(loaded),
        only_here=[name for name in here if name not in there],
        only_there=[name for name in there if name not in here],
        reshaped={
            name: (list(there[name].shape), list(here[name].shape))
            for name in here
            if name in there and name not in loaded
        },
    )


def save_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a nested state of dicts, lists, tensors and JSON scalars."""
    tensors: dict[str, Tensor] = {}
    save_tensors(file, tensors=tensors, metadata={"state": _pack(state, tensors)})


def load_state(file: Path) -> dict[str, Any]:
    """Read what `save_state` wrote. Raises RunError when the file is damaged."""
    tensors, metadata = _load(file)
    try:
        state: dict[str, Any] = _unpack(metadata["state"], tensors)
        return state
    except KeyError as error:
        raise RunError(f"{file} is not a checkpoint: it lacks {error}") from None


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    metadata = load_metadata(file)
    with safe_open(file, "pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}, metadata  # noqa: SIM118


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of a nested state. A dict becomes its items: JSON would turn integer keys into texts."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.clone()  # two names of one memory are refused by the format
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state may hold tensors, dicts, lists and scalars, found {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return value


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators, for `set_random_state`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's generators back into a state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
