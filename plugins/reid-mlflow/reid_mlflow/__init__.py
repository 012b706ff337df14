"""MLflow as a logger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from reidcore import Component, hookimpl, option

if TYPE_CHECKING:
    from reid_mlflow.logger import MLflowRun


@frozen(kw_only=True)
class MLflow:
    """A run of MLflow: the recipe as parameters, figures as metrics, and the run's files."""

    tracking_uri: str | None = option(
        None, help="the store or server; by default MLFLOW_TRACKING_URI, or else mlflow.db beside the run folder"
    )
    experiment: str = option("reidcore", help="name of the experiment, which is made if there is none")
    run_name: str | None = option(None, help="name of the run, the run folder's by default")
    tags: Mapping[str, str] = option(factory=dict, help="tags of the run, beside the versions")
    model: bool = option(False, help="keep model.safetensors with the run's files")

    def build(self, folder: Path) -> MLflowRun:
        from reid_mlflow.logger import MLflowRun

        return MLflowRun(folder, self.tracking_uri, self.experiment, self.run_name, self.tags, self.model)


@hookimpl
def reidcore_loggers() -> Iterator[Component]:
    """Offer MLflow."""
    yield Component(name="mlflow", config=MLflow)
