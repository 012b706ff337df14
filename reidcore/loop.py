"""The training loop: epochs and steps, precision, freezing, clipping, averaging, checkpoints.

It knows no TOML, no names and no plugins: `assemble` hands it built parts.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import define, evolve, field
from torch import Tensor, nn
from torch.optim import Optimizer

from reidcore.checkpoint import load_state, random_state, save_state, set_random_state
from reidcore.data import Loader
from reidcore.distributed import (
    Elsewhere,
    add,
    average_norms,
    gather_batch,
    of_all,
    spread,
    sum_gradients,
    wait,
)
from reidcore.errors import ReidError, RunError
from reidcore.kinds import Logger, Loss, Schedule, Task
from reidcore.model import FrozenModel, Model
from reidcore.options import TrainingOptions
from reidcore.types import ALONE, Batch, Features, Output, Sample, Step, Stream, World

SAVE_SECONDS = 300.0
KEPT = 2


class Losses(nn.Module):
    """The objective: named, weighted terms. Losses with parameters are trained with the model."""

    def __init__(self, terms: Sequence[tuple[float, Loss]], world: World = ALONE) -> None:
        super().__init__()
        self.world = world
        self.weights = [weight for weight, _ in terms]
        self.terms: Any = nn.ModuleList([loss for _, loss in terms])  # type: ignore[misc]
        self.maps = tuple(dict.fromkeys(name for _, loss in terms for name in loss.needs.maps))

    def forward(self, output: Output, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return every term, weighted; terms of the same name are numbered.

        Of several processes each has its part of a term: their sum is the whole batch's.
        """
        result: dict[str, Tensor] = {}
        for weight, loss in zip(self.weights, self.terms, strict=True):
            seen, part = (output, batch), batch.share
            if loss.needs.gather and self.world.size > 1:
                key = f"gathered {id(batch)}"  # a step may have several batches
                seen, part = step.once(key, lambda: gather_batch(output, batch, self.world)), 1 / self.world.size
            for name, value in loss(*seen, step).items():
                key = name if name not in result else f"{name}-{sum(k.startswith(name) for k in result) + 1}"
                result[key] = weight * part * value
        return result


@define(eq=False)
class Run:
    """A training run: its parts, its state, and what they need of each other.

    `evaluate` is called with the deployed model and the epoch; it logs, and returns what the best epoch is chosen by
    (higher is better) or None when every epoch is as good as the last. `extract` returns the features that a model
    makes of images, as in an evaluation.

    classes, identities: of the model's classifiers; identities is None where a class is no identity.

    Of several processes (`world`) each has a run of its own; after each step all hold the same weights. Their random
    numbers differ, so that what a task draws in `round` should depend on `seed` and the epoch only.
    """

    model: Model
    losses: Losses
    task: Task
    train: Stream
    targets: Sequence[Sample]
    classes: int
    identities: Sequence[int] | None
    make_loader: Callable[[Stream], Loader]
    make_optimizer: Callable[[Sequence[tuple[str, nn.Parameter]]], Optimizer]
    make_schedule: Callable[[int, int], Schedule]
    evaluate: Callable[[Model, int], float | None]
    extract: Callable[[nn.Module, Sequence[Sample]], Features]
    options: TrainingOptions
    evaluate_every: int
    folder: Path
    device: torch.device
    precision: torch.dtype
    loggers: Sequence[Logger] = ()
    world: World = ALONE
    seed: int = 0
    streams: Mapping[str, Stream] = field(factory=dict, init=False)
    loaders: Mapping[str, Loader] = field(factory=dict, init=False)
    optimizer: Any = field(default=None, init=False)
    freezer: Any = field(default=None, init=False)
    averaged: FrozenModel | None = field(default=None, init=False)
    epoch: int = field(default=0, init=False)
    batches_done: int = field(default=0, init=False)
    step: int = field(default=0, init=False)
    best: float | None = field(default=None, init=False)
    best_epoch: int = field(default=0, init=False)
    interrupted: bool = field(default=False, init=False)
    _begun: int = field(default=-1, init=False)
    _unsaid: list[dict[str, Any]] | None = field(factory=list, init=False)

    def forward(self, batch: Batch) -> Output:
        """Return the model's output for a batch, in the run's precision, with the maps that losses need."""
        with self.autocast():
            output: Output = self.model(batch.images, self.losses.maps, batch.cameras)
        return output

    def autocast(self) -> torch.autocast:
        """Return the context in which networks run."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def log(self, **event: Any) -> None:
        """Send an event to every logger, or keep it until the training begins."""
        if self._unsaid is not None:
            self._unsaid.append(event)
            return
        for logger in self.loggers if self.world.main else ():
            logger.log(event)

    def begin_to_log(self) -> None:
        """Send what was kept until now."""
        kept, self._unsaid = self._unsaid or [], None
        for event in kept:
            self.log(**event)

    def resize(self, classes: int, rows: Mapping[str, Tensor] | None = None) -> None:
        """Give the heads of the model, and of its average, classifiers of `classes` rows: (K, D) a view, or fresh ones.

        The classes are no identities any more. For tasks, in `round`.
        """
        for model in (self.model, self.average):
            for view, head in model.heads.items() if model else ():
                head.resize(classes, rows and rows[view])  # type: ignore[operator]
        self.classes, self.identities = classes, None

    @property
    def average(self) -> Model | None:
        """The model of averaged weights, if they are averaged."""
        return self.averaged.model if self.averaged else None

    @property
    def decay(self) -> float:
        """What the average keeps of itself in this step: less early on, so that it does not remember the start."""
        return min(self.options.ema, (1 + self.step) / (10 + self.step))

    @property
    def deployed(self) -> Model:
        """The model that is evaluated and saved: the weights' average when there is one."""
        return self.average if self.average is not None else self.task.deploy()

    def modules(self) -> list[nn.Module]:
        """Return all that has parameters or buffers of the training."""
        held = (self.model, self.losses, self.task, self.average)
        return [module for module in held if isinstance(module, nn.Module)]

    def told(self) -> Iterator[Any]:
        """Yield every part that may want to hear of steps and epochs, or have a state of its own."""
        yield self.task
        yield from self.losses.terms
        yield from (loader.sampler for loader in self.loaders.values())


def prepare(run: Run, resume: bool = False) -> None:
    """Build what training needs beside the model, and find what cannot work before anything is written.

    `resume` goes on from the last checkpoint, or from the start where there is none yet.
    """
    run.task.prepare(run)
    if run.options.ema:
        average = copy.deepcopy(run.task.deploy())
        run.averaged = FrozenModel(average, None, lambda images: images, run.precision, cameras=True)
        run.averaged.want(run.losses.maps)
    run.freezer = Freezer(run.model, run.options.freeze, run.options.freeze_iterations)
    state = _restore(run) if resume else {}
    spread(run.modules(), run.world)
    if run.epoch < run.options.epochs:
        _begin(run)
        run.make_schedule(steps(run), run.options.epochs)
    _find_parameters(run)
    for number, part in enumerate(run.told()):
        if number and str(number) in state:
            part.load_state_dict(state[str(number)])


def _find_parameters(run: Run) -> None:
    """Make the optimizer of all that learns; one that is there goes on with what it knows of what is still there."""
    former = run.optimizer
    known = {id(value) for group in former.param_groups for value in group["params"]} if former else set()
    named = [item for module in (run.model, run.losses) for item in module.named_parameters()]
    if isinstance(run.task, nn.Module):
        named += list(run.task.named_parameters())
    named = [(name, value) for name, value in named if value.requires_grad or id(value) in known]  # or frozen for now
    if {id(value) for _, value in named} == known:
        return
    run.optimizer = run.make_optimizer(named)
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if former:
        run.optimizer.state.update({value: former.state[value] for _, value in named if value in former.state})


def _begin(run: Run) -> None:
    """Let the task say what the epoch is trained on."""
    if run.epoch == run._begun:
        return
    if (streams := run.task.round(run.epoch, run)) is not None:
        _require_agreement(run, streams)
        run.loaders = {
            name: run.loaders[name] if run.streams.get(name) is stream else run.make_loader(stream)
            for name, stream in streams.items()
        }
        run.streams = streams
        spread(run.modules(), run.world)
        _find_parameters(run)
    run._begun = run.epoch


def _require_agreement(run: Run, streams: Mapping[str, Stream]) -> None:
    """Raise RunError if the processes are to train on different labels, which nothing would notice."""
    own = {name: zlib.crc32(np.ascontiguousarray(stream.labels).tobytes()) for name, stream in streams.items()}
    if any(other != own for other in of_all(own, run.world)):
        raise RunError(
            f"the processes made different labels for epoch {run.epoch + 1}: the task draws them at random, or adds up "
            "in another order; train in one process"
        )


def fit(run: Run, resume: bool = False) -> Model:
    """Train, and return the model of the best epoch, or of the last one where none is chosen.

    `resume` is as in `prepare`, whose it has to be where that was called. Raises RunError when the loss is not finite
    or when `run.interrupted` was set, and passes on what the parts raise.
    """
    if run.optimizer is None:
        prepare(run, resume)
    if resume:
        for logger in run.loggers if run.world.main else ():
            logger.log({"kind": "resume", "epoch": run.epoch, "step": run.step})
    run.begin_to_log()
    try:
        while run.epoch < run.options.epochs:
            _epoch(run)
    except RunError:
        raise
    except ReidError:  # raised between two steps, so that the state is a whole one
        if run.world.size == 1:  # others may be anywhere
            save(run)
        raise
    best = run.folder / "checkpoints" / "best.safetensors"
    if run.best is not None and best.is_file():
        state = load_state(best)
        _fit_classes(run, state)
        run.deployed.load_state_dict(state["model"])
    return run.deployed


def _epoch(run: Run) -> None:
    _begin(run)
    steps_per_epoch = steps(run)
    schedule = run.make_schedule(steps_per_epoch, run.options.epochs)
    run.model.train()
    run.losses.train()
    count = _batches(run)
    meter = _Meter(run, steps_per_epoch)
    saved = time.monotonic()
    for batches, images in _together(run):
        position = run.batches_done % run.options.accumulate
        group_size = min(run.options.accumulate, count - (run.batches_done - position))
        if position == 0:
            run.freezer.update(run.step)
            for group in run.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(run.step)
            run.optimizer.zero_grad(set_to_none=True)
        _accumulate(run, batches, images, group_size, meter)
        if position + 1 < group_size:
            continue
        _update(run)
        meter.end_step()
        if run.batches_done < count:
            stop, overdue = map(bool, add([run.interrupted, time.monotonic() - saved > SAVE_SECONDS], run.world))
            if stop or overdue:
                save(run)
                saved = time.monotonic()
            _stop_if(stop, run)
    run.epoch, run.batches_done = run.epoch + 1, 0
    _tell(run, "after_epoch")
    meter.end_epoch()
    last = run.epoch == run.options.epochs
    if run.evaluate_every and (run.epoch % run.evaluate_every == 0 or last):
        _judge(run)
    stop = any(add([run.interrupted], run.world))
    if run.epoch % run.options.checkpoint_every == 0 or last or stop:
        save(run)
    _stop_if(stop and not last, run)


def _accumulate(run: Run, batches: Mapping[str, Batch], images: int, group_size: int, meter: _Meter) -> None:
    """Add one batch's gradient, as one of `group_size` that are averaged; images: of all processes."""
    losses = run.task.losses(batches, Step(run.step, run.epoch, run.averaged))
    own = [float(value.detach()) for value in losses.values()]
    values = dict(zip(losses, add(own, run.world), strict=True))
    if not all(math.isfinite(value) for value in values.values()):
        raise _not_a_number(run, ", ".join(f"{name} = {value:.4g}" for name, value in values.items()))
    total = torch.stack([value.float() for value in losses.values()]).sum()
    if not total.requires_grad:
        raise RunError("no loss reaches a parameter that learns; freeze less (training.freeze), or add another loss")
    (total / group_size).backward()  # type: ignore[no-untyped-call]
    run.batches_done += 1
    meter.add(values, images)


def _update(run: Run) -> None:
    """Take the step that the accumulated gradients of all processes make."""
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    sum_gradients(parameters, run.world)
    if run.options.clip_norm:
        torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], run.options.clip_norm)
    run.optimizer.step()
    average_norms(run.modules(), run.world)
    run.step += 1
    if run.average is not None:
        _average(run.average, run.task.deploy(), run.decay)
    _tell(run, "after_step")


def _tell(run: Run, event: str) -> None:
    for part in run.told():
        if hasattr(part, event):
            getattr(part, event)(run)


def _stop_if(stop: bool, run: Run) -> None:
    if stop:
        run.interrupted = True
        raise RunError(f"stopped at step {run.step}; go on with --resume")


class _Meter:
    """What the events of an epoch say: losses, speed and the time that is left."""

    def __init__(self, run: Run, steps_per_epoch: int) -> None:
        self.run, self.total = run, steps_per_epoch * run.options.epochs
        self.started, self.first_step, self.images = time.monotonic(), run.step, 0
        self.of_step: list[Mapping[str, float]] = []
        self.of_epoch: list[Mapping[str, float]] = []

    def add(self, losses: Mapping[str, float], images: int) -> None:
        """Take in one batch."""
        self.of_step.append(losses)
        self.images += images

    def end_step(self) -> None:
        """Log the step whose batches were added."""
        run, seconds = self.run, max(time.monotonic() - self.started, 1e-9)
        losses = _means(self.of_step)
        self.of_epoch += self.of_step
        self.of_step = []
        run.log(
            kind="step",
            epoch=run.epoch + 1,
            step=run.step,
            steps=self.total,
            loss=sum(losses.values()),
            losses=losses,
            lr=run.optimizer.param_groups[0]["lr"],
            images_per_second=self.images / seconds,
            seconds_left=(self.total - run.step) * seconds / (run.step - self.first_step),
        )

    def end_epoch(self) -> None:
        """Log the epoch, of which a resumed run has seen the rest only."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        losses = _means(self.of_epoch)
        self.run.log(
            kind="epoch",
            epoch=self.run.epoch,
            step=self.run.step,
            loss=sum(losses.values()),
            losses=losses,
            seconds=seconds,
            images_per_second=self.images / seconds,
        )


def _means(batches: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {name: sum(batch.get(name, 0.0) for batch in batches) / len(batches) for name in names}


def steps(run: Run) -> int:
    """Return the number of optimizer steps an epoch."""
    return math.ceil(_batches(run) / run.options.accumulate)


def _batches(run: Run) -> int:
    """Return the number of batches an epoch: those of the first stream."""
    return len(next(iter(run.loaders.values())))


def _together(run: Run) -> Iterator[tuple[dict[str, Batch], int]]:
    """Yield the batches of all streams while every process has them, each with its share of the images, and how many
    images those of all processes are.

    An error of one is raised in all of them, between two steps, with a checkpoint of these.
    """
    flows, names = zip(*_flows(run), strict=False), list(run.loaders)
    while True:
        batches: tuple[Batch, ...] | None = None
        failed: ReidError | None = None
        try:
            batches = next(flows, None)
            if batches is None:
                return
        except ReidError as error:
            if run.world.size == 1:
                raise
            failed = error
        own = [len(batch.labels) for batch in batches] if batches else [0] * len(names)
        failures, *all_of = add([failed is not None, *own], run.world)
        if failures or batches is None:
            save(run)
            said = of_all(failed and str(failed), run.world)
            raise failed or Elsewhere(next(text for text in said if text))
        shared = [evolve(batch, share=len(batch.labels) / n) for batch, n in zip(batches, all_of, strict=True)]
        yield dict(zip(names, shared, strict=True)), int(sum(all_of))


def _flows(run: Run) -> Iterator[Iterator[Batch]]:
    """Yield the batches of each stream from where the run is: the first one's epoch, and the others' without end."""
    first, *others = run.loaders.values()
    yield first.batches(run.epoch, run.batches_done)
    for loader in others:
        yield _endless(loader, run.step * run.options.accumulate)


def _endless(loader: Loader, start: int) -> Iterator[Batch]:
    epoch, skip = divmod(start, len(loader))
    while True:
        yield from loader.batches(epoch, skip)
        epoch, skip = epoch + 1, 0


def _not_a_number(run: Run, what: str) -> RunError:
    found = checkpoints(run.folder)
    then = f"go on from {found[-1]} with --resume" if found else "start again: there is no checkpoint yet"
    return RunError(
        f"the training blew up at epoch {run.epoch + 1}, step {run.step + 1} ({what}); lower optimizer.lr, set "
        f'training.clip_norm = 5.0, or write training.precision = "float32", then {then}'
    )


def _judge(run: Run) -> None:
    score = run.evaluate(run.deployed, run.epoch)
    if score is not None and (run.best is None or score > run.best):
        run.best, run.best_epoch = score, run.epoch
        if run.world.main:
            state = {"model": run.deployed.state_dict(), **_classes(run)}
            save_state(run.folder / "checkpoints" / "best.safetensors", state)
        wait(run.world)


def _classes(run: Run) -> dict[str, Any]:
    return {"classes": run.classes, "identities": run.identities is not None}


def _fit_classes(run: Run, state: Mapping[str, Any]) -> None:
    classes, known = state["classes"], state["identities"]
    if classes != run.classes or (run.identities is not None and not known):
        run.resize(classes)


class Freezer:
    """Keeps the modules below some prefixes from learning for the first iterations, their norm layers included.

    Raises RunError for a prefix that is no module.
    """

    def __init__(self, model: nn.Module, prefixes: Sequence[str], iterations: int) -> None:
        names = [name for name, _ in model.named_modules() if name]
        for prefix in prefixes:
            if prefix not in names:
                near = get_close_matches(prefix, names, 1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise RunError(f"training.freeze: the model has no module '{prefix}'{hint}")
        self.modules = [model.get_submodule(prefix) for prefix in prefixes]
        self.learning = [p for module in self.modules for p in module.parameters() if p.requires_grad]
        self.iterations = iterations

    def update(self, step: int) -> None:
        """Freeze or thaw for the step that begins; the model is in training mode otherwise."""
        for module in self.modules:
            module.train(step >= self.iterations)
        for parameter in self.learning:
            parameter.requires_grad_(step >= self.iterations)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average towards the model."""
    values = model.state_dict()
    for name, mean in average.state_dict().items():
        value = values[name]
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def save(run: Run) -> None:
    """Write a checkpoint of everything that the run's future depends on; keep the last two.

    Raises RunError, and keeps the ones before, when the weights are not finite.
    """
    if not all(parameter.isfinite().all() for parameter in run.model.parameters()):
        raise _not_a_number(run, "weights that are not finite")
    random = of_all(random_state(run.device), run.world)
    if run.world.main:
        _write(run, random)
    wait(run.world)


def _write(run: Run, random: Sequence[Mapping[str, Tensor]]) -> None:
    """Write a checkpoint with the random states of all processes."""
    parts = {
        str(number): part.state_dict()
        for number, part in enumerate(run.told())
        if hasattr(part, "state_dict") and not isinstance(part, nn.Module)
    }
    state = {
        "model": run.model.state_dict(),
        **_classes(run),
        "losses": run.losses.state_dict(),
        "task": run.task.state_dict() if isinstance(run.task, nn.Module) else {},
        "parts": parts,
        "average": None if run.average is None else run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "random": random,
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


def _restore(run: Run) -> Mapping[str, Any]:
    """Go back to the last checkpoint, if there is one; return the states of parts by their number."""
    found = checkpoints(run.folder)
    if not found:
        return {}  # stopped before the first checkpoint: the beginning is where it was
    state = load_state(found[-1])
    try:
        if isinstance(run.task, nn.Module):
            run.task.load_state_dict(state["task"])
        elif "0" in state["parts"]:
            run.task.load_state_dict(state["parts"]["0"])  # type: ignore[attr-defined]
        _fit_classes(run, state)
        run.model.load_state_dict(state["model"])
        run.losses.load_state_dict(state["losses"])
        if run.average is not None:
            run.average.load_state_dict(state["average"] or state["model"])
        _find_parameters(run)
        options = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
        run.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(run.optimizer.param_groups, options, strict=True):
            group.update(own)  # the recipe's: a learning rate lowered before resuming counts
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{found[-1]} does not fit the recipe any more: {reason}; start a new run") from None
    for parameter, slots in run.optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # the file knows no memory formats
                slots[name] = torch.empty_like(parameter).copy_(value)
    run.epoch, run.batches_done, run.step = state["progress"]
    run.best, run.best_epoch = state["best"]
    random = state["random"]
    of_each = [random] if isinstance(random, Mapping) else random  # until runs had several processes it was one
    if run.world.rank < len(of_each):  # there may have been fewer processes
        set_random_state(of_each[run.world.rank], run.device)
    if run.epoch > run.options.epochs:
        raise RunError(f"{found[-1]} is of epoch {run.epoch}; training.epochs = {run.options.epochs} is less")
    parts: Mapping[str, Any] = state["parts"]
    return parts
