"""What a run's log says of its training, as figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidcore.report.plots import Line, Plot

POINTS = 1500
"""Of a curve; of more steps, neighbours are averaged."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in order: none if it has no log. A line that was cut off is left out."""
    events = []
    file = folder / "log.jsonl"
    for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def training_plots(events: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return the curves of losses, of the learning rate (paper, Figure 4), of speed, and of figures by epoch."""
    steps = [event for event in events if event["kind"] == "step"]
    plots = []
    if steps:
        number = np.array([event["step"] for event in steps], dtype=np.float64)
        names = list(dict.fromkeys(name for event in steps for name in event["losses"]))
        series = {"all": [event["loss"] for event in steps]} if len(names) > 1 else {}
        series |= {name: [event["losses"].get(name, np.nan) for event in steps] for name in names}
        smooth = " Neighbouring steps are averaged." if len(steps) > POINTS else ""
        for file, title, label, lines, caption in (
            ("loss", "Loss", "loss", series, "The terms of the objective, as they are weighted." + smooth),
            ("learning-rate", "Learning rate", "learning rate", {"learning rate": [s["lr"] for s in steps]}, smooth),
            (
                "speed",
                "Speed",
                "images a second",
                {"images a second": [event["images_per_second"] for event in steps]},
                "Since the beginning of each epoch." + smooth,
            ),
        ):
            drawn = [Line(name, *_thinned(number, np.array(values))) for name, values in lines.items()]
            plots.append(Plot(file, title, "step", label, drawn, caption=caption))
    progress: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        if event["kind"] == "evaluation":
            for name in ("mAP", "rank1"):
                if name in event["metrics"]:
                    at = progress.setdefault(f"{event['test']}, {name}", [])
                    at.append((event["epoch"], event["metrics"][name]))
    by_epoch = [
        Line(name, *np.array(sorted(dict(points).items())).T) for name, points in progress.items() if len(points) > 1
    ]
    if by_epoch:
        plots.append(Plot("progress", "Figures by epoch", "epoch", "figure", by_epoch, percent="y"))
    return plots


def _thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means of neighbours, of a curve with too many points."""
    size = -(-len(x) // POINTS)
    if size == 1:
        return x, y
    starts = np.arange(0, len(x), size)
    counts = np.diff(starts, append=len(x))
    return tuple(np.add.reduceat(values, starts) / counts for values in (x, y))  # type: ignore[return-value]
