"""Supervised training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from reidcore.errors import RunError
from reidcore.types import Batch, Step, Stream

if TYPE_CHECKING:
    from torch import Tensor

    from reidcore.loop import Run
    from reidcore.model import Model


class Train:
    """Train the model on the labelled images with the recipe's losses."""

    def prepare(self, run: Run) -> None:
        """Keep the run, whose model and losses are used as they are. Raises RunError for unlabelled data sets."""
        if run.targets:
            raise RunError('the task "train" learns from labelled images only; take the target sets out of [[train]]')
        self.run = run

    def round(self, epoch: int, run: Run) -> Mapping[str, Stream] | None:
        """Return the training images at first, and nothing new afterwards."""
        return None if run.streams else {"train": run.train}

    def losses(self, batches: Mapping[str, Batch], step: Step) -> Mapping[str, Tensor]:
        """Return the weighted losses of the batch."""
        batch = batches["train"]
        losses: dict[str, Tensor] = self.run.losses(self.run.forward(batch), batch, step)
        return losses

    def deploy(self) -> Model:
        """Return the trained model."""
        return self.run.model
