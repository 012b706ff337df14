"""Loggers of the core."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from reidcore.errors import RunError, os_message
from reidcore.events import numbers


class TensorBoard:
    """Writes events of a run into its folder `tensorboard`: numbers as curves, texts and the recipe as texts.

    Raises RunError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.recipe, self.folder = folder / "recipe.toml", folder / "tensorboard"
        try:
            self.make: Any = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            raise RunError('TensorBoard is not installed; pip install "reidcore[tensorboard]"') from None
        self.writer: Any = None

    def log(self, event: Mapping[str, Any]) -> None:
        """Write one event."""
        try:
            if self.writer is None or event["kind"] == "resume":
                # what an earlier process wrote of later steps, which the checkpoint does not know, is not shown
                self._open(event["step"] + 1 if event["kind"] == "resume" else None)
            step = event.get("step", 0)
            for name, value in numbers(event).items():
                self.writer.add_scalar(name, value, step)
            if "text" in event:
                self.writer.add_text(event["kind"], event["text"], step)
            self.writer.flush()  # a killed run has all steps up to its last checkpoint
        except OSError as error:
            raise RunError(os_message(error, "write", self.folder)) from None

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # each event was flushed, and what failed then was reported
            if self.writer is not None:
                self.writer.close()

    def _open(self, purge: int | None) -> None:
        self.close()
        self.writer = self.make(str(self.folder), purge_step=purge)
        if self.recipe.is_file():
            self.writer.add_text("recipe", f"```toml\n{self.recipe.read_text(encoding='utf-8')}\n```", purge or 0)
