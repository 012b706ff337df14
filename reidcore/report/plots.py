"""Figures, each defined once and drawn twice: by Plotly in a page, by matplotlib for a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.errors import RunError, os_message

COLOURS = ("#3566b0", "#d1495b", "#2a9d8f", "#e0a100", "#7a4fa3", "#6b7280", "#c2703d", "#0f766e")
"""They can be read on white and on black."""

_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


@frozen(eq=False)
class Line:
    """A curve: x and y, (P,). colour: a number, by its place when absent; filled: whether it is shaded below."""

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    dash: Literal["solid", "dash", "dot"] = "solid"
    colour: int | None = None
    filled: bool = False


def histogram(
    name: str, edges: NDArray[Any], shares: NDArray[Any], dash: Literal["solid", "dash", "dot"], colour: int
) -> Line:
    """Return the outline of a histogram with (B + 1,) edges and (B,) shares, as densities: widths play no role."""
    heights = np.concatenate([[0], np.repeat(shares / np.diff(edges), 2), [0]])
    return Line(name, np.repeat(edges, 2), heights, dash, colour, filled=True)


@frozen(eq=False)
class Plot:
    """A figure. name: of its file; x, y: the axes' labels; percent: the axes whose values are shares; log: the axes
    that are logarithmic; caption: what it shows, for people."""

    name: str
    title: str
    x: str
    y: str
    items: Sequence[Line]
    percent: str = ""
    log: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    caption: str = ""

    def plotly(self) -> dict[str, Any]:
        """Return its traces and layout; colours of text and grid are the page's."""
        traces: list[dict[str, Any]] = []
        for number, item in enumerate(self.items):
            colour = _colour(item, number)
            trace: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": item.name}
            trace |= {"x": _numbers(item.x), "y": _numbers(item.y)}
            trace["line"] = {"color": colour, "dash": item.dash, "width": 2}
            traces.append(trace | ({"fill": "tozeroy", "fillcolor": f"{colour}33"} if item.filled else {}))
        layout: dict[str, Any] = {}
        for axis, label, limits in (("x", self.x, self.x_range), ("y", self.y, self.y_range)):
            log = axis in self.log
            settings: dict[str, Any] = {"title": {"text": label}, "type": "log" if log else "linear"}
            if log:
                settings["dtick"] = 1  # a label for each power of ten
            if axis in self.percent:
                settings["tickformat"] = "~%"
            if limits:
                settings["range"] = [float(np.log10(limit)) for limit in limits] if log else list(limits)
            layout[f"{axis}axis"] = settings
        return {"name": self.name, "title": self.title, "caption": self.caption, "data": traces, "layout": layout}

    def draw(self, file: Path) -> None:
        """Write it as a picture that fits a column of a paper, 300 dots an inch. Raises RunError when that fails."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter

        figure = Figure(figsize=(4.5, 3.2), dpi=300, layout="constrained")
        axes = figure.add_subplot()
        for number, item in enumerate(self.items):
            colour = _colour(item, number)
            axes.plot(item.x, item.y, _DASHES[item.dash], color=colour, label=item.name, linewidth=1.4)
            if item.filled:
                axes.fill_between(item.x, item.y, color=colour, alpha=0.2, linewidth=0)
        for axis, label, limits in (("x", self.x, self.x_range), ("y", self.y, self.y_range)):
            getattr(axes, f"set_{axis}label")(label)
            if axis in self.log:
                getattr(axes, f"set_{axis}scale")("log")
            elif axis in self.percent:
                getattr(axes, f"{axis}axis").set_major_formatter(PercentFormatter(1.0))
            if limits:
                getattr(axes, f"set_{axis}lim")(limits)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(self.items) > 1:
            axes.legend(frameon=False, fontsize="small")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(file)
        except OSError as error:
            raise RunError(os_message(error, "write", file)) from None


def draw(plots: Sequence[Plot], folder: Path, label: str) -> None:
    """Write figures of one test, or of the training, into a folder. Raises RunError when that fails."""
    for plot in plots:
        plot.draw(folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}-{plot.name}.png")


def _colour(item: Line, number: int) -> str:
    return COLOURS[(number if item.colour is None else item.colour) % len(COLOURS)]


def _numbers(values: NDArray[Any]) -> list[float | None]:
    """Return numbers that JSON can hold, of six digits."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=np.float64)]


def overlaid(
    curves: Mapping[str, Mapping[str, Mapping[str, NDArray[Any]]]], cmc: Mapping[str, NDArray[Any]]
) -> list[Plot]:
    """Return the figures of several runs or tests in one, by their names.

    curves: of each what `Result.curves` holds; cmc: of each the (K,) shares of queries with a match by each rank.
    """
    plots = []
    if cmc:
        lines = [Line(name, np.arange(1, len(values) + 1), values) for name, values in cmc.items()]
        plots.append(
            Plot(
                "cmc",
                "Cumulative matches",
                "rank k",
                "queries with a match by rank k",
                lines,
                percent="y",
                y_range=(min(0.98, min(float(line.y.min()) for line in lines) - 0.02), 1.005),
                caption="The share of queries that have found a match among their first k images.",
            )
        )
    rocs = {name: found["roc"] for name, found in curves.items() if "roc" in found}
    if rocs:
        positive = [float(roc["far"][roc["far"] > 0].min()) for roc in rocs.values()]
        plots.append(
            Plot(
                "roc",
                "Receiver operating characteristic",
                "false accept rate (FAR)",
                "true accept rate (TAR)",
                [Line(name, roc["far"], roc["tar"]) for name, roc in rocs.items()],
                percent="xy",
                log="x",
                x_range=(min(0.1, max(1e-6, min(positive))), 1),
                y_range=(-0.02, 1.02),
                caption="If pairs up to some distance are accepted as one identity: the share of true pairs that are "
                "accepted, by the share of false ones that are.",
            )
        )
        several = len(rocs) > 1
        bars = []
        for number, (name, roc) in enumerate(rocs.items()):
            dash: Any = ("solid", "dash", "dot")[number % 3]
            for colour, side in enumerate(("genuine", "impostor")):
                text = {"genuine": "same identity", "impostor": "different identities"}[side]
                colour += 2 * (number // 3)  # after three runs other colours
                label = f"{name}, {text}" if several else text
                bars.append(histogram(label, roc["edges"], roc[side], dash, colour))
        plots.append(
            Plot(
                "distances",
                "Distances within and between identities",
                "distance",
                "density of pairs",
                bars,
                caption="How far apart images of one identity are, and images of two. The less they overlap, the "
                "better a threshold can tell them apart. Matches by the query's own camera are left out where the "
                "protocol leaves them out.",
            )
        )
    return plots


def cumulative(first_places: NDArray[Any], upto: int = 50) -> NDArray[np.float64]:
    """Return (K,) the share of queries whose first match, (Q,) places from 1 and NaN without one, is by each rank."""
    known = first_places[~np.isnan(first_places)]
    return np.array([np.mean(known <= rank) for rank in range(1, upto + 1)])
