"""Schedules of the core."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.errors import RunError
from reidcore.hookspecs import hookimpl


@frozen
class WarmupCosineSchedule:
    """The course itself, in steps; see `WarmupCosine`."""

    warmup: int
    flat_until: int
    total: int
    start_factor: float
    end_factor: float

    def __call__(self, step: int) -> float:
        """Return the factor at `step`, counted from 0."""
        if step < self.warmup:
            return self.start_factor + (1 - self.start_factor) * step / self.warmup
        if step < self.flat_until:
            return 1.0
        # the last step, not the one after it, reaches the end value
        progress = (step - self.flat_until) / max(1, self.total - 1 - self.flat_until)
        return self.end_factor + (1 - self.end_factor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@frozen(kw_only=True)
class WarmupCosine:
    """Linear warm-up, then flat, then a cosine to the end of training (Figure 4)."""

    unit: Literal["training", "epochs", "iterations"] = option(
        "training", help="unit of 'warmup' and 'flat_until': the share of the whole training, epochs or iterations"
    )
    warmup: float = option(0.11, help="length of the warm-up; Figure 4: 2000 of 18000 iterations", at_least=0)
    flat_until: float = option(0.5, help="when the cosine begins; Figure 4: after 9000 iterations", at_least=0)
    start_factor: float = option(0.1, help="factor on the learning rate at the first step", above=0, at_most=1)
    end_factor: float = option(0.0022, help="factor at the last step: 3.5e-4 falls to 7.7e-7", at_least=0, at_most=1)

    def build(self, steps_per_epoch: int, epochs: int) -> WarmupCosineSchedule:
        total = steps_per_epoch * epochs
        scale = {"training": total, "epochs": steps_per_epoch, "iterations": 1}[self.unit]
        warmup, flat_until = round(self.warmup * scale), round(self.flat_until * scale)
        if max(warmup, flat_until) > total:
            raise RunError(
                f"scheduler: the cosine begins at iteration {max(warmup, flat_until)}, but the training has {total}; "
                'lower warmup and flat_until, train for more epochs, or write unit = "training"'
            )
        return WarmupCosineSchedule(warmup, max(flat_until, warmup), total, self.start_factor, self.end_factor)


@hookimpl
def reidcore_schedulers() -> Iterator[Component]:
    """Offer the warm-up and cosine schedule."""
    yield Component(name="warmup-cosine", config=WarmupCosine)
