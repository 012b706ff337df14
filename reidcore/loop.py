"""The training loop: epochs and steps, precision, freezing, clipping, averaging, checkpoints.

It knows no TOML, no names and no plugins: `assemble` hands it built parts.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.optim import Optimizer

from reidcore.checkpoint import load_state, random_state, save_state, set_random_state
from reidcore.data import Loader
from reidcore.errors import DataError, RunError
from reidcore.kinds import Logger, Loss, Schedule, Task
from reidcore.model import Model
from reidcore.options import TrainingOptions
from reidcore.types import ALONE, Batch, Output, Step, Stream, World

SAVE_SECONDS = 300.0
KEPT = 2


class Losses(nn.Module):
    """The objective: named, weighted terms. Losses with parameters are trained with the model."""

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms: Any = nn.ModuleList([loss for _, loss in terms])  # type: ignore[misc]
        self.maps = tuple(dict.fromkeys(name for _, loss in terms for name in loss.needs.maps))

    def forward(self, output: Output, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return every term, weighted; terms of the same name are numbered."""
        result: dict[str, Tensor] = {}
        for weight, loss in zip(self.weights, self.terms, strict=True):
            for name, value in loss(output, batch, step).items():
                key = name if name not in result else f"{name}-{sum(k.startswith(name) for k in result) + 1}"
                result[key] = weight * value
        return result


@define(eq=False)
class Run:
    """A training run: its parts, its state, and what they need of each other.

    `evaluate` is called with the deployed model and the epoch; it logs, and returns what the best epoch is chosen by
    (higher is better) or None when every epoch is as good as the last.
    """

    model: Model
    losses: Losses
    task: Task
    train: Stream
    make_loader: Callable[[Stream], Loader]
    make_optimizer: Callable[[Sequence[tuple[str, nn.Parameter]]], Optimizer]
    make_schedule: Callable[[int, int], Schedule]
    evaluate: Callable[[Model, int], float | None]
    options: TrainingOptions
    evaluate_every: int
    folder: Path
    device: torch.device
    precision: torch.dtype
    loggers: Sequence[Logger] = ()
    world: World = ALONE
    streams: Mapping[str, Stream] = field(factory=dict, init=False)
    loaders: Mapping[str, Loader] = field(factory=dict, init=False)
    optimizer: Any = field(default=None, init=False)
    average: Model | None = field(default=None, init=False)
    epoch: int = field(default=0, init=False)
    batches_done: int = field(default=0, init=False)
    step: int = field(default=0, init=False)
    best: float | None = field(default=None, init=False)
    best_epoch: int = field(default=0, init=False)
    interrupted: bool = field(default=False, init=False)

    def forward(self, batch: Batch) -> Output:
        """Return the model's output for a batch, in the run's precision, with the maps that losses need."""
        with self.autocast():
            output: Output = self.model(batch.images, self.losses.maps, batch.cameras)
        return output

    def autocast(self) -> torch.autocast:
        """Return the context in which networks run."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def log(self, **event: Any) -> None:
        """Send an event to every logger."""
        for logger in self.loggers if self.world.main else ():
            logger.log(event)

    @property
    def deployed(self) -> Model:
        """The model that is evaluated and saved: the weights' average when there is one."""
        return self.average if self.average is not None else self.task.deploy()

    def told(self) -> Iterator[Any]:
        """Yield every part that may want to hear of steps and epochs, or have a state of its own."""
        yield self.task
        yield from self.losses.terms
        yield from (loader.sampler for loader in self.loaders.values())


def fit(run: Run, resume: bool = False) -> Model:
    """Train, and return the model of the best epoch, or of the last one where none is chosen.

    `resume` goes on from the last checkpoint, or from the start where there is none yet. Raises RunError when the
    loss is not finite or when `run.interrupted` was set, and passes on what the parts raise.
    """
    run.task.prepare(run)
    _use(run, run.task.round(0, run))
    named = [item for module in (run.model, run.losses) for item in module.named_parameters()]
    if isinstance(run.task, nn.Module):
        named += list(run.task.named_parameters())
    run.optimizer = run.make_optimizer([(name, value) for name, value in named if value.requires_grad])
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if run.options.ema:
        run.average = copy.deepcopy(run.task.deploy()).requires_grad_(False).eval()
    freezer = _Freezer(run)
    if resume:
        _restore(run)
        run.log(kind="resume", epoch=run.epoch, step=run.step)
    try:
        while run.epoch < run.options.epochs:
            _epoch(run, freezer)
    except DataError:  # raised between two steps, so that the state is a whole one
        save(run)
        raise
    best = run.folder / "checkpoints" / "best.safetensors"
    if run.best is not None and best.is_file():
        run.deployed.load_state_dict(load_state(best)["model"])
    return run.deployed


def _epoch(run: Run, freezer: _Freezer) -> None:
    options = run.options
    _use(run, run.task.round(run.epoch, run))
    steps_per_epoch = steps(run)
    schedule = run.make_schedule(steps_per_epoch, options.epochs)
    freezer.begin_epoch()
    loaders = [loader.batches(run.epoch, run.batches_done) for loader in run.loaders.values()]
    count = min(len(loader) for loader in run.loaders.values())
    saved = started = time.monotonic()
    first_batch, images, sums = run.batches_done, 0, dict[str, float]()
    for batches in zip(*loaders, strict=False):
        position = run.batches_done % options.accumulate
        group_size = min(options.accumulate, count - (run.batches_done - position))
        if position == 0:
            freezer.update(run.step)
            factor = schedule(run.step)
            for group in run.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            run.optimizer.zero_grad(set_to_none=True)
        losses = run.task.losses(dict(zip(run.loaders, batches, strict=True)), Step(number=run.step, epoch=run.epoch))
        total = torch.stack([value.float() for value in losses.values()]).sum()
        values = {name: float(value.detach()) for name, value in losses.items()}
        _require_finite(run, values)
        (total / group_size).backward()  # type: ignore[no-untyped-call]
        run.batches_done += 1
        images += sum(len(batch.labels) for batch in batches)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if position + 1 < group_size:
            continue
        if options.clip_norm:
            parameters = [p for group in run.optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        run.optimizer.step()
        run.step += 1
        if run.average is not None:
            _average(run.average, run.task.deploy(), options.ema, run.step)
        for part in run.told():
            if hasattr(part, "after_step"):
                part.after_step(run)
        now = time.monotonic()
        rate = images / max(now - started, 1e-9)
        left = (
            (options.epochs * steps_per_epoch - run.step)
            * (now - started)
            / max(1, math.ceil((run.batches_done - first_batch) / options.accumulate))
        )
        run.log(
            kind="step",
            epoch=run.epoch + 1,
            step=run.step,
            steps=options.epochs * steps_per_epoch,
            loss=sum(values.values()),
            **values,
            lr=run.optimizer.param_groups[0]["lr"],
            images_per_second=rate,
            seconds_left=left,
        )
        if run.interrupted:
            save(run)
            raise RunError(f"stopped at step {run.step}; go on with --resume")
        if now - saved > SAVE_SECONDS and run.batches_done < count:
            save(run)
            saved = time.monotonic()
    seconds = time.monotonic() - started
    seen = run.batches_done - first_batch
    run.epoch, run.batches_done = run.epoch + 1, 0
    for part in run.told():
        if hasattr(part, "after_epoch"):
            part.after_epoch(run)
    means = {name: value / max(1, seen) for name, value in sums.items()}
    run.log(
        kind="epoch",
        epoch=run.epoch,
        step=run.step,
        loss=sum(means.values()),
        **means,
        seconds=seconds,
        images_per_second=images / max(seconds, 1e-9),
    )
    last = run.epoch == options.epochs
    if run.evaluate_every and (run.epoch % run.evaluate_every == 0 or last):
        _judge(run)
    if run.epoch % options.checkpoint_every == 0 or last:
        save(run)


def steps(run: Run) -> int:
    """Return the number of optimizer steps an epoch."""
    return math.ceil(min(len(loader) for loader in run.loaders.values()) / run.options.accumulate)


def _use(run: Run, streams: Mapping[str, Stream] | None) -> None:
    if streams is not None:
        run.streams = streams
        run.loaders = {name: run.make_loader(stream) for name, stream in streams.items()}


def _require_finite(run: Run, values: Mapping[str, float]) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    shown = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
    raise RunError(
        f"the loss is not a number any more at epoch {run.epoch + 1}, step {run.step + 1} ({shown}); lower "
        'optimizer.lr, set training.clip_norm = 5.0, or write training.precision = "float32", then go on from the '
        f"last checkpoint in {run.folder / 'checkpoints'} with --resume"
    )


def _judge(run: Run) -> None:
    score = run.evaluate(run.deployed, run.epoch)
    if score is not None and (run.best is None or score > run.best):
        run.best, run.best_epoch = score, run.epoch
        if run.world.main:
            save_state(run.folder / "checkpoints" / "best.safetensors", {"model": run.deployed.state_dict()})


class _Freezer:
    """Keeps the modules below some prefixes from learning for the first iterations, their norm layers included."""

    def __init__(self, run: Run) -> None:
        self.run = run
        prefixes = run.options.freeze
        names = [name for name, _ in run.model.named_modules() if name]
        for prefix in prefixes:
            if prefix not in names:
                near = get_close_matches(prefix, names, 1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise RunError(f"training.freeze: the model has no module '{prefix}'{hint}")
        self.modules = [run.model.get_submodule(prefix) for prefix in prefixes]
        self.parameters = [p for module in self.modules for p in module.parameters()]
        self.learns = [parameter.requires_grad for parameter in self.parameters]
        self.frozen = False

    def begin_epoch(self) -> None:
        """Set training mode, which evaluation has left."""
        self.run.model.train()
        self.run.losses.train()
        self.frozen = False

    def update(self, step: int) -> None:
        """Freeze or thaw for the step that begins."""
        freeze = step < self.run.options.freeze_iterations
        if freeze and not self.frozen:
            for module in self.modules:
                module.eval()
            for parameter in self.parameters:
                parameter.requires_grad_(False)
        elif not freeze and step == self.run.options.freeze_iterations:
            self.run.model.train()
            for parameter, learns in zip(self.parameters, self.learns, strict=True):
                parameter.requires_grad_(learns)
        self.frozen = freeze


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model. Early on it follows faster, so that it does not remember the start."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, mean in average.state_dict().items():
        value = model.state_dict(keep_vars=False)[name]
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def save(run: Run) -> None:
    """Write a checkpoint of everything that the run's future depends on; keep the last two."""
    if not run.world.main:
        return
    parts = {
        str(number): part.state_dict()
        for number, part in enumerate(run.told())
        if hasattr(part, "state_dict") and not isinstance(part, nn.Module)
    }
    state = {
        "model": run.model.state_dict(),
        "losses": run.losses.state_dict(),
        "task": run.task.state_dict() if isinstance(run.task, nn.Module) else {},
        "parts": parts,
        "average": None if run.average is None else run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "random": random_state(run.device),
        # a group of accumulated batches that is not complete begins again
        "progress": [run.epoch, run.batches_done - run.batches_done % run.options.accumulate, run.step],
        "best": [run.best, run.best_epoch],
    }
    save_state(run.folder / "checkpoints" / f"step-{run.step:09d}.safetensors", state)
    for old in checkpoints(run.folder)[:-KEPT]:
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Return a run folder's checkpoints, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


def _restore(run: Run) -> None:
    found = checkpoints(run.folder)
    if not found:
        return  # stopped before the first checkpoint: the beginning is where it was
    state = load_state(found[-1])
    try:
        run.model.load_state_dict(state["model"])
        run.losses.load_state_dict(state["losses"])
        if isinstance(run.task, nn.Module):
            run.task.load_state_dict(state["task"])
        if run.average is not None:
            run.average.load_state_dict(state["average"] or state["model"])
        options = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
        run.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(run.optimizer.param_groups, options, strict=True):
            group.update(own)  # the recipe's: a learning rate lowered before resuming counts
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{found[-1]} does not fit the recipe any more: {reason}; start a new run") from None
    for number, part in enumerate(run.told()):
        if str(number) in state["parts"]:
            part.load_state_dict(state["parts"][str(number)])
    for parameter, slots in run.optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # the file knows no memory formats
                slots[name] = torch.empty_like(parameter).copy_(value)
    run.epoch, run.batches_done, run.step = state["progress"]
    run.best, run.best_epoch = state["best"]
    set_random_state(state["random"], run.device)
