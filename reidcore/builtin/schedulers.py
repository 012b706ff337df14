"""Schedules of the core: factors on the learning rate, each a pure function of the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.errors import RunError
from reidcore.hookspecs import hookimpl
from reidcore.kinds import Schedule


@frozen(kw_only=True)
class _WithWarmup:
    """What schedules with a warm-up share: their unit, and the warm-up that the course after it is multiplied by.

    `times` says of each option that is a time, or several, what happens then.
    """

    times: ClassVar[dict[str, str]] = {"warmup": "the warm-up ends"}

    unit: Literal["training", "epochs", "iterations"] = option(
        "training", help="unit of all times here: the share of the whole training, epochs or iterations"
    )
    warmup: float = option(0.11, help="length of the warm-up; Figure 4: 2000 of 18000 iterations", at_least=0)
    warmup_method: Literal["linear", "exponential", "constant"] = option(
        "linear", help="how the factor gets from 'start_factor' to 1; 'constant' stays, and jumps when the warm-up ends"
    )
    start_factor: float = option(0.1, help="factor on the learning rate at the first step", above=0, at_most=1)

    def __attrs_post_init__(self) -> None:
        for name in self.times:
            if self.unit == "training" and (found := self._latest(name)) > 1:
                raise ValueError(
                    f"found {name} = {found:g} as a share of the training; expected at most 1, "
                    'or unit = "epochs" or "iterations"'
                )

    def build(self, steps_per_epoch: int, epochs: int) -> Schedule:
        total = steps_per_epoch * epochs
        scale = {"training": total, "epochs": steps_per_epoch, "iterations": 1}[self.unit]
        for name, event in self.times.items():
            if (step := round(self._latest(name) * scale)) > total > 0:
                raise RunError(
                    f"scheduler: {event} at iteration {step}, but the training has {total}; "
                    f'lower {name}, train for more epochs, or write unit = "training"'
                )
        warmup = round(self.warmup * scale)
        course = self._course(scale, warmup, total)
        return lambda step: course(step) * (self._rise(step / warmup) if step < warmup else 1)

    def _course(self, scale: int, warmup: int, total: int) -> Schedule:
        """Return the schedule without its warm-up; `scale` is the number of steps in a unit."""
        return lambda step: 1.0

    def _rise(self, progress: float) -> float:
        if self.warmup_method == "linear":
            return self.start_factor + (1 - self.start_factor) * progress
        return self.start_factor ** (1 - progress) if self.warmup_method == "exponential" else self.start_factor

    def _latest(self, name: str) -> float:
        value: float | tuple[float, ...] = getattr(self, name)
        return max(value) if isinstance(value, tuple) else value


def _progress(step: int, start: int, total: int) -> float:
    """Return how far `step` is between `start` and the last step, in 0..1."""
    return min(max(step - start, 0) / max(total - 1 - start, 1), 1.0)


def _cosine(start: float, end: float, progress: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * progress)) / 2


@frozen(kw_only=True)
class Constant(_WithWarmup):
    """Warm-up, then the same rate to the end of training."""


@frozen(kw_only=True)
class WarmupCosine(_WithWarmup):
    """Warm-up, then flat, then a cosine to the end of training (Figure 4)."""

    times: ClassVar[dict[str, str]] = {**_WithWarmup.times, "flat_until": "the cosine begins"}

    flat_until: float = option(
        0.5,
        help="when the cosine begins, at the earliest after the warm-up; Figure 4: after 9000 iterations",
        at_least=0,
    )
    end_factor: float = option(0.0022, help="factor at the last step: 3.5e-4 falls to 7.7e-7", at_least=0, at_most=1)

    def _course(self, scale: int, warmup: int, total: int) -> Schedule:
        start = max(round(self.flat_until * scale), warmup)
        return lambda step: _cosine(1, self.end_factor, _progress(step, start, total))


@frozen(kw_only=True)
class MultiStep(_WithWarmup):
    """Warm-up, then a factor at each milestone, counted from the start of training."""

    times: ClassVar[dict[str, str]] = {**_WithWarmup.times, "milestones": "the last milestone is"}

    milestones: tuple[float, ...] = option(
        (0.33, 0.75), help="when the rate falls; in epochs, 40 is after the 40th, however long the warm-up", above=0
    )
    gamma: float = option(0.1, help="factor at each milestone", above=0, at_most=1)

    def __attrs_post_init__(self) -> None:
        if not self.milestones or any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError(f"found milestones = {list(self.milestones)}; expected one or several, rising")
        super().__attrs_post_init__()

    def _course(self, scale: int, warmup: int, total: int) -> Schedule:
        milestones = [round(time * scale) for time in self.milestones]
        return lambda step: self.gamma ** bisect_right(milestones, step)


@frozen(kw_only=True)
class Polynomial(_WithWarmup):
    """Warm-up, then a power of the share of training that is left (Liu et al. 2015, "poly")."""

    power: float = option(0.9, help="the power; 1 is a straight line", above=0)
    end_factor: float = option(0.0, help="factor at the last step", at_least=0, at_most=1)

    def _course(self, scale: int, warmup: int, total: int) -> Schedule:
        def factor(step: int) -> float:
            left: float = (1 - _progress(step, warmup, total)) ** self.power
            return self.end_factor * (1 - left) + left

        return factor


@frozen(kw_only=True)
class OneCycle:
    """One cosine up to the learning rate, one down to almost nothing (Smith and Topin 2018); momentum stays."""

    pct_start: float = option(0.3, help="share of the training that rises", at_least=0, below=1)
    div_factor: float = option(25.0, help="the first step has the learning rate over this", at_least=1)
    final_div_factor: float = option(1e4, help="the last step has the first one's rate over this", at_least=1)

    def build(self, steps_per_epoch: int, epochs: int) -> Schedule:
        last = steps_per_epoch * epochs - 1
        peak = self.pct_start * (last + 1) - 1  # as PyTorch has it: not a whole step
        first = 1 / self.div_factor

        def factor(step: int) -> float:
            if step < peak:
                return _cosine(first, 1, step / peak)
            return _cosine(1, first / self.final_div_factor, (step - peak) / (last - peak))

        return factor


@hookimpl
def reidcore_schedulers() -> Iterator[Component]:
    """Offer the constant, cosine, multi-step, polynomial and one-cycle schedules."""
    yield Component(name="constant", config=Constant)
    yield Component(name="warmup-cosine", config=WarmupCosine)
    yield Component(name="multistep", config=MultiStep)
    yield Component(name="polynomial", config=Polynomial)
    yield Component(name="one-cycle", config=OneCycle)
