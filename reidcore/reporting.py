"""Where a run's events go: the terminal and `log.jsonl`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from reidcore.errors import RunError, os_message

if TYPE_CHECKING:
    from reidcore.export import Exported

PLAIN_SECONDS = 10.0
PATIENCE_SECONDS = 2.0


def make_console(stderr: bool = False) -> Console:
    """Return the console; what is no terminal has no width to wrap at."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=200)


class JsonLines:
    """Appends each event to a file as one JSON object a line.

    A "resume" event drops the lines of steps that the checkpoint does not know: they will come again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.stream = file.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(os_message(error, "write", file)) from None

    def log(self, event: Mapping[str, Any]) -> None:
        """Write one event."""
        try:
            if event["kind"] == "resume":
                self._forget_after(event["step"])
            self.stream.write(json.dumps(event) + "\n")
            self.stream.flush()
        except OSError as error:
            raise RunError(os_message(error, "write", self.file)) from None

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # each event was flushed, and what failed then was reported
            self.stream.close()

    def _forget_after(self, step: int) -> None:
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except ValueError:  # the line that was being written when the run was killed
                continue
        self.stream.close()
        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.file)
        self.stream = self.file.open("a", encoding="utf-8")


class Terminal:
    """Shows a live bar with loss, learning rate, speed and time left; plain lines where there is no terminal."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.live = console.is_terminal and not quiet
        self.progress: Progress | None = None
        self.bar: TaskID | None = None
        self.last_line = time.monotonic()
        self.work = Bar(console, quiet)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far work is that is not training; see `Bar`."""
        self._take_away()
        self.work(what, done, total)

    def warn(self, text: str) -> None:
        """Show a sentence that must not be missed."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show a sentence."""
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    def log(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if self.quiet:
            return
        self.work.close()
        if event["kind"] == "step":
            self._step(event)
        elif event["kind"] == "epoch":
            self.console.print(
                f"epoch {event['epoch']}: loss {event['loss']:.3f}, {event['images_per_second']:.0f} images/s, "
                f"{event['seconds']:.0f} s",
                highlight=False,
                soft_wrap=True,
            )
        elif event["kind"] == "evaluation":
            figures = ", ".join(f"{name} {value:.3f}" for name, value in event["metrics"].items())
            covered = f"{event['covered']} of {event['queries']} queries"
            chosen = describe_chosen(event.get("chosen", {}))
            self.console.print(f"{event['test']}: {figures} ({covered}{chosen})", highlight=False, soft_wrap=True)
        elif event["kind"] == "round":
            self.console.print(event["text"], highlight=False, soft_wrap=True)
        elif event["kind"] == "resume":
            self.console.print(f"going on from step {event['step']}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        self.work.close()
        self._take_away()

    def _take_away(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _step(self, event: Mapping[str, Any]) -> None:
        text = (
            f"loss {event['loss']:.3f}  lr {event['lr']:.2e}  {event['images_per_second']:.0f} images/s  "
            f"{duration(event['seconds_left'])} left"
        )
        if self.live:
            if self.progress is None:
                self.progress = _start_progress(self.console)
                self.bar = self.progress.add_task("training", total=event["steps"], text="")
            assert self.bar is not None
            self.progress.update(self.bar, completed=event["step"], text=text, description=f"epoch {event['epoch']}")
        elif time.monotonic() - self.last_line > PLAIN_SECONDS:
            self.last_line = time.monotonic()
            where = f"epoch {event['epoch']}, step {event['step']}/{event['steps']}"
            self.console.print(f"{where}: {text}", highlight=False, soft_wrap=True)


class Bar:
    """Shows long work: a bar on a terminal when it takes more than two seconds, or at once when nobody knows how long
    it takes; a line every ten seconds elsewhere.

    A context manager that is called with what is being done, how much of it is, and of how much (0: not known).
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.progress: Progress | None = None
        self.what = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far the work is."""
        if self.quiet:
            return
        now = time.monotonic()
        if what != self.what:
            self.close()
            self.what, self.started, self.last_line = what, now, now
        left = f"{duration((now - self.started) * (total - done) / done)} left" if done else ""
        if not self.console.is_terminal:
            if now - self.last_line > PLAIN_SECONDS:
                self.last_line = now
                text = f"{what}: {done} of {total}, {left}" if total else what
                self.console.print(text, highlight=False, soft_wrap=True)
        elif self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=done, text=left)
        elif not total or now - self.started > PATIENCE_SECONDS:
            self.progress = _start_progress(self.console)
            self.progress.add_task(what, total=total or None, completed=done, text=left)

    def close(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        self.what = ""


def _start_progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    progress = Progress(*columns, console=console, transient=True)
    progress.start()
    return progress


def duration(seconds: float) -> str:
    """Return a length of time as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_chosen(chosen: Mapping[str, float]) -> str:
    """Return what was chosen as the end of a text, "; chosen on held-out identities: dsr blend = 0.8", or nothing."""
    values = ", ".join(f"{name} = {value:g}" for name, value in chosen.items())
    return f"; chosen on held-out identities: {values}" if values else ""


def _size(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def describe_exported(exported: Exported) -> str:
    """Return what was written, and what was proven."""
    files = " and ".join(f"{file} ({_size(file.stat().st_size)})" for file in exported.files)
    proof = (
        f"proven on {exported.images} images in batches of 1, 3 and 32: no embedding differs from the model's by more "
        f"than {exported.difference:.1e} (1 - cosine)"
    )
    return "\n".join([files, proof, *exported.notes])


def metrics_table(rows: Mapping[str, tuple[Mapping[str, float], str]], intervals: bool = False) -> Table:
    """Return a table of each label's figures, in percent, and the queries that they cover.

    A figure over repeats or folds shows its standard deviation; `intervals` adds those of results.
    """
    names = list(dict.fromkeys(name for figures, _ in rows.values() for name in figures))
    table = Table("", *(Column(name, justify="right") for name in (*names, "queries")))
    for label, (figures, queries) in rows.items():
        table.add_row(label, *(_cell(figures, name, intervals) for name in names), queries)
    return table


def _cell(figures: Mapping[str, float], name: str, intervals: bool) -> str:
    if name not in figures:
        return ""
    text = f"{figures[name]:.1%}"
    if name in getattr(figures, "spread", {}):
        text += f" ± {figures.spread[name]:.1%}"  # type: ignore[attr-defined]
    if intervals and name in getattr(figures, "intervals", {}):
        low, high = figures.intervals[name]  # type: ignore[attr-defined]
        text += f"\n{low:.1%} to {high:.1%}"
    return text


__all__ = ["Bar", "JsonLines", "Terminal", "duration", "make_console", "metrics_table"]
