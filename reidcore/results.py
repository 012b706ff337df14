"""Results of a run's tests, kept with the run to be compared and plotted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import asdict
from numpy.typing import NDArray

from reidcore.checkpoint import load_state, save_state
from reidcore.retrieval.evaluation import Result

FILE = "evaluation.safetensors"


def save_results(folder: Path, results: Mapping[str, Result]) -> None:
    """Write the results of tests, `{label: result}`, into a run folder. Raises RunError when that fails."""
    save_state(folder / FILE, {label: _tensors(asdict(result)) for label, result in results.items()})


def load_results(folder: Path) -> dict[str, Result]:
    """Read the results of a run folder. Raises RunError when there are none or the file is damaged."""
    found = {}
    for label, state in load_state(folder / FILE).items():
        state = _arrays(state)
        state["intervals"] = {name: tuple(pair) for name, pair in state["intervals"].items()}
        found[label] = Result(state.pop("_figures"), **state)
    return found


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    return [_tensors(item) for item in value] if isinstance(value, (list, tuple)) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        array: NDArray[Any] = value.numpy()
        return array
    if isinstance(value, Mapping):
        return {key: _arrays(item) for key, item in value.items()}
    return [_arrays(item) for item in value] if isinstance(value, list) else value
