"""What Python users call: run a recipe, load what it trained."""

from __future__ import annotations

import json
import platform
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from reidcore import __version__
from reidcore.assemble import Evaluator, Test, assemble, build_model, make_evaluator, read_data
from reidcore.builtin.modules.transforms import Resize
from reidcore.checkpoint import load_metadata, load_tensors, save_tensors
from reidcore.data import read_image
from reidcore.errors import DataError, ReidError, RunError, os_message
from reidcore.kinds import Logger
from reidcore.loop import Run, fit
from reidcore.model import Model
from reidcore.recipe import Loaded, fill, load_recipe
from reidcore.reporting import JsonLines, Terminal
from reidcore.retrieval.evaluation import Result
from reidcore.types import Sample

WEIGHTS = "model.safetensors"


@frozen(eq=False)
class Finished:
    """A finished run: its folder, and the figures of each test, before training too where that was asked for."""

    folder: Path
    metrics: Mapping[str, Mapping[str, float]]
    before: Mapping[str, Mapping[str, float]]


def run(
    recipe: Loaded | str | Path | Mapping[str, Any],
    *,
    resume: bool = False,
    console: Console | None = None,
    quiet: bool = True,
) -> Finished:
    """Train and evaluate a recipe in a new run folder, or go on in the one that is there (`resume`).

    Raises ReidError, always with what to do; what was trained so far stays in the run folder.
    """
    loaded = recipe if isinstance(recipe, Loaded) else load_recipe(recipe)
    options = loaded.recipe.run
    folder = options.output / options.name
    if (folder / "metrics.json").is_file() and resume:
        figures = json.loads((folder / "metrics.json").read_text())
        before = folder / "metrics-before.json"
        return Finished(folder, figures, json.loads(before.read_text()) if before.is_file() else {})
    terminal = Terminal(console or Console(stderr=True), quiet)
    data = read_data(loaded)
    evaluator = make_evaluator(loaded.recipe)
    tests = data.tests + ((data.holdout,) if data.holdout else ())
    for test in tests:
        if note := test.coverage_note():
            terminal.note(note)
    exporters = [part.build() for part in loaded.recipe.export]
    _open_folder(folder, resume)
    loggers: list[Logger] = [
        JsonLines(folder / "log.jsonl"),
        terminal,
        *(part.build(folder) for part in loaded.recipe.logger),
    ]

    def score(model: nn.Module, epoch: int) -> float | None:
        results = _evaluate(run_, evaluator, model, tests, epoch)
        return None if data.holdout is None else results[data.holdout.label]["mAP"]

    try:
        run_ = assemble(loaded, data, folder, loggers, score)
        _write(folder / "recipe.toml", fill(loaded, versions(loaded)))
        terminal.note(
            f"{len(data.train.samples)} images of {data.classes} identities on {run_.device}"
            f"{' in bfloat16' if run_.precision == torch.bfloat16 else ''}; run folder {folder}"
        )
        before_file = folder / "metrics-before.json"
        if loaded.recipe.evaluation.before and not before_file.is_file():
            _write_metrics(before_file, _evaluate(run_, evaluator, run_.model, data.tests, 0))
        with _interruptible(run_):
            model = fit(run_, resume)
        save_tensors(folder / WEIGHTS, model.state_dict(), {"classes": data.classes})
        results = _evaluate(run_, evaluator, model, data.tests, run_.best_epoch or run_.epoch)
        for position, exporter in enumerate(exporters):
            _export(loaded, position, exporter, model, data.train.samples, folder)
        _write_metrics(folder / "metrics.json", results)
    finally:
        for logger in loggers:
            logger.close()
    before = json.loads(before_file.read_text()) if before_file.is_file() else {}
    return Finished(folder, {label: dict(result) for label, result in results.items()}, before)


def evaluate_run(folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Result]:
    """Evaluate a finished run's model again, on the tests of its recipe with `KEY=VALUE` overrides."""
    model, loaded = _load(Path(folder), overrides)
    data = read_data(loaded, train=False)
    for test in data.tests:
        test.coverage_note()
    evaluator = make_evaluator(loaded.recipe)
    return evaluator(model.to(evaluator.device), data.tests)


def load_model(folder: str | Path, device: str = "cpu") -> Embedder:
    """Load the model of a run folder. Raises RunError when there is none."""
    model, loaded = _load(Path(folder), (f"run.device={device}",))
    evaluator = make_evaluator(loaded.recipe)
    return Embedder(model.to(evaluator.device).eval(), evaluator)


class Embedder:
    """A trained model that turns images into embeddings."""

    def __init__(self, model: Model, evaluator: Evaluator) -> None:
        self.model, self.evaluator = model, evaluator

    @property
    def dim(self) -> int:
        """The embedding's dimension, D."""
        return self.model.dim

    def embed(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Return (N, D) float32 embeddings of paths, PIL images or (H, W, 3) uint8 arrays. Raises DataError."""
        samples = [Sample(Path(image)) if isinstance(image, (str, Path)) else Sample(_Given(image)) for image in images]
        embeddings: NDArray[np.float32] = self.evaluator.extract(self.model, samples).embeddings
        return embeddings if len(samples) else np.zeros((0, self.dim), np.float32)


@frozen(eq=False)
class _Given:
    """A picture that is in memory already."""

    image: Any
    name: str = "given image"

    def open(self) -> Any:
        """Return it."""
        return self.image


def versions(loaded: Loaded) -> dict[str, str]:
    """Return the versions of all that a run's result depends on."""
    found = {"python": platform.python_version(), "reidcore": __version__}
    found |= {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
    found |= {p.origin: p.version for p in loaded.catalog.plugins if p.status == "ok" and p.version}
    for file in loaded.plugin_files:
        import hashlib

        found[str(file.resolve())] = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    return found


def _load(folder: Path, overrides: Sequence[str]) -> tuple[Model, Loaded]:
    for name in ("recipe.toml", WEIGHTS):
        if not (folder / name).is_file():
            raise RunError(f"{folder} is not a finished run: it has no {name}")
    from tomli import loads

    table = loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    files = [name for name, text in table.get("versions", {}).items() if text.startswith("sha256:")]
    # the weights are in the run folder; those that training started from are not needed any more
    overrides = (*overrides, *(["backbone.weights=none"] if "weights" in table.get("backbone", {}) else []))
    loaded = load_recipe(folder / "recipe.toml", overrides=overrides, plugin_files=files)
    model = build_model(loaded.recipe, load_metadata(folder / WEIGHTS)["classes"])
    try:
        model.load_state_dict(load_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise RunError(f"{folder / WEIGHTS} does not fit its recipe: {str(error).splitlines()[-1].strip()}") from None
    return model, loaded


def _open_folder(folder: Path, resume: bool) -> None:
    try:
        if (folder / "recipe.toml").exists() and not resume:
            raise RunError(
                f"the run folder {folder} exists; go on with it (--resume), choose another place (--output DIR or "
                f"--set run.name=NAME), or remove it"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(os_message(error, "make the run folder", folder)) from None


def _evaluate(run: Run, evaluator: Evaluator, model: nn.Module, tests: Sequence[Test], epoch: int) -> dict[str, Result]:
    results = evaluator(model, tests)
    for label, result in results.items():
        run.log(
            kind="evaluation",
            epoch=epoch,
            step=run.step,
            test=label,
            metrics=dict(result),
            queries=result.queries,
            covered=result.covered,
        )
    return results


def _export(
    loaded: Loaded, position: int, exporter: Any, model: Model, samples: Sequence[Sample], folder: Path
) -> None:
    """Export, and prove on real images that the artifact computes the model's embeddings; else leave no file."""
    from reidcore.export import export
    from reidcore.structure import component_of

    name = component_of(loaded.catalog, loaded.recipe.export[position]).name
    resize = Resize(loaded.recipe.input.height, loaded.recipe.input.width)
    chosen = [samples[index] for index in np.linspace(0, len(samples) - 1, min(8, len(samples)), dtype=int)]
    images = np.stack([resize(read_image(sample)).permute(1, 2, 0).numpy() for sample in chosen])
    export(model, exporter, images, folder / "export" / name)


def _write_metrics(file: Path, results: Mapping[str, Result]) -> None:
    _write(file, json.dumps({label: dict(result) for label, result in results.items()}, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    """Write a file so that it is at every moment either its old self or complete."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise RunError(os_message(error, "write", file)) from None


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C end the run after the step in progress, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


__all__ = ["DataError", "Embedder", "Finished", "ReidError", "evaluate_run", "load_model", "load_recipe", "run"]
