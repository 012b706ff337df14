"""One run of MLflow for one run folder."""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import time
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from reidcore.errors import RunError
from reidcore.events import numbers

SEND_SECONDS = 10.0
RETRY_SECONDS = 1800.0  # a client tries for minutes until it gives up, during which nothing is learnt
STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}
FILES = ("recipe.toml", "metrics.json", "log.jsonl")


class MLflowRun:
    """Sends a run's figures to MLflow, every ten seconds and with each epoch; its files when it ends.

    The run's id is kept in the run folder's file `mlflow-run`, by which a resumed run goes on with it. Without `uri`
    and MLFLOW_TRACKING_URI the store is a file beside the run folder. Raises RunError when MLflow cannot be reached at
    first; later failures are warnings, and what could not be sent is sent with what follows.
    """

    def __init__(
        self,
        folder: Path,
        uri: str | None = None,
        experiment: str = "reidcore",
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        model: bool = False,
    ) -> None:
        self.folder, self.files = folder, (*FILES, "model.safetensors") if model else FILES
        beside = folder.parent.resolve()
        store = uri or os.environ.get("MLFLOW_TRACKING_URI")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # which tells of the tables that it makes
        self.waiting: list[Metric] = []
        self.known: dict[str, int] = {}
        self.next, self.status = 0.0, "FAILED"  # unless the run says that it came to its end
        try:
            self.client = MlflowClient(tracking_uri=store or f"sqlite:///{(beside / 'mlflow.db').as_posix()}")
            former = self._resumed()
            where = None if store else (beside / "mlartifacts").as_uri()
            self.run = former or self._begun(experiment, where, name or folder.resolve().name)
            self.goes_on = former is not None
            self._describe(tags or {})
        except MlflowException as error:
            raise RunError(f"MLflow: {error.message}") from None

    def log(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        now = time.time()
        for name, value in numbers(event).items():
            self.waiting.append(Metric(_name(name), value, round(now * 1000), event["step"]))
        if event["kind"] == "end":
            self.status = STATUS.get(event.get("status", ""), "FAILED")
        elif self.waiting and now >= self.next:
            self.next = now + SEND_SECONDS
            with self._patient("what could not be sent is sent later"):
                self._send()

    def close(self) -> None:
        """Send what is left, the files and how the run ended."""
        with self._patient(f"what is missing there is in {self.folder}"):
            self._send()
            for file in map(self.folder.joinpath, self.files):
                if file.is_file():
                    self.client.log_artifact(self.run, str(file))
            self.client.set_terminated(self.run, self.status)

    def _resumed(self) -> str | None:
        """Return the id of the run that is kept in the run folder, if MLflow has it."""
        file = self.folder / "mlflow-run"
        if not file.is_file():
            return None
        run = file.read_text(encoding="utf-8").strip()
        try:
            self.client.update_run(run, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the store is another one than it was
        return run

    def _begun(self, experiment: str, artifacts: str | None, name: str) -> str:
        """Begin a run, and return its id."""
        found = self.client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
        run: str = self.client.create_run(number, run_name=name).info.run_id
        (self.folder / "mlflow-run").write_text(f"{run}\n", encoding="utf-8")
        return run

    def _describe(self, tags: Mapping[str, str]) -> None:
        """Send the recipe's options, and as tags the versions and what the user gives."""
        file = self.folder / "recipe.toml"
        recipe = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        versions = {f"version.{name}": text for name, text in recipe.pop("versions", {}).items()}
        sent = self.client.get_run(self.run).data.params  # which MLflow does not let anybody change
        params = {_name(key): value for key, value in _flat(recipe)}
        self.client.log_batch(
            self.run,
            params=[Param(key, value) for key, value in params.items() if key not in sent],
            tags=[RunTag(_name(key), str(value)) for key, value in {**versions, **tags}.items()],
        )

    def _send(self) -> None:
        fresh = [metric for metric in self.waiting if metric.step > self._last(metric.key)]
        self.client.log_batch(self.run, metrics=fresh)
        self.waiting = []

    def _last(self, key: str) -> int:
        """Return the step up to which MLflow had a figure before the run was resumed: it takes nothing back."""
        if not self.goes_on:
            return -1
        if key not in self.known:
            history = self.client.get_metric_history(self.run, key)
            self.known[key] = max((metric.step for metric in history), default=-1)
        return self.known[key]

    @contextmanager
    def _patient(self, then: str) -> Iterator[None]:
        """Warn where MLflow fails, and leave it alone for a while: a training does not end because of it."""
        try:
            yield
        except MlflowException as error:
            self.next = time.time() + RETRY_SECONDS
            warnings.warn(f"MLflow: {error.message}; {then}", RuntimeWarning, stacklevel=3)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the options of a recipe as ("backbone.name", "resnet50"); tables of an array are numbered."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}{key}.")
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        yield prefix.removesuffix("."), text


def _name(text: str) -> str:
    """Return a name that MLflow accepts: of letters, digits and some signs, and normal as a path."""
    return posixpath.normpath(re.sub(r"[^\w\-. :/]", "-", text))


__all__ = ["MLflowRun"]
