"""The events of a run, and the figures in them that make curves.

An event is a flat mapping that can be written as JSON. Loggers meet, by "kind":

    start        of each process that trains: "began", a date and time, "machine", "device", "system"
    left-out     "images": what is wrong with each image that cannot be read and is not used
    init         once, of a run that starts from another one: "run", and which of its weights fit
    resume       "epoch", "step", that a checkpoint has and the run goes on from; what is of a later step comes again
    step         "epoch", "step", "steps", "loss", "losses" by name, "lr", "images_per_second", "seconds_left"
    epoch        "epoch", "step", "loss", "losses", "seconds", "images_per_second"
    round        "step", "text", and what the task has to say
    evaluation   "epoch", "step", "test", "metrics" by name, "queries", "covered", "chosen" by name
    end          last, "epoch", "step", "status": "finished", "interrupted" or "failed", then with a "text"

and have to take others. Steps and epochs count from 1; an evaluation before the training is of step 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHERE = ("epoch", "step", "steps", "seconds_left")


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an event, for curves over its "step": none of an event without one.

    They are called "train/loss", "train/losses/triplet" or "train/lr" of a step, "epoch/loss" of an epoch,
    "market1501/mAP" of an evaluation, and "round/clusters" of what else a kind may have.
    """
    if "step" not in event:
        return {}
    if event["kind"] == "evaluation":
        group, found = event.get("test", "evaluation"), {**event.get("metrics", {}), **_below("chosen", event)}
    else:
        group = "train" if event["kind"] == "step" else event["kind"]
        found = {name: value for name, value in event.items() if name not in WHERE} | _below("losses", event)
    return {f"{group}/{name}": float(value) for name, value in found.items() if type(value) in (int, float)}


def _below(name: str, event: Mapping[str, Any]) -> dict[str, Any]:
    # no figure is called as others begin, "losses" and not "loss": where names are files that would be a folder, too
    return {f"{name}/{inner}": value for inner, value in event.get(name, {}).items()}


__all__ = ["numbers"]
