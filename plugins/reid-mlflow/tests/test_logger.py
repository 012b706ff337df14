"""Whole runs in MLflow's local stores, read back with its client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import tomli
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import reidcore
from reid_mlflow.logger import MLflowRun
from reidcore.errors import RunError
from reidcore.events import numbers
from reidcore.testing import run_cli, tiny_recipe

STEP = {"kind": "step", "epoch": 1, "steps": 9, "lr": 0.1}
END = {"kind": "end", "epoch": 1, "step": 9, "status": "finished"}


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run's log: `{name: [(step, value)]}`."""
    curves = defaultdict(list)
    for line in (folder / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        for name, value in numbers(event).items():
            curves[name].append((event["step"], value))
    return dict(curves)


def history(client: MlflowClient, run: str, name: str) -> list[tuple[int, float]]:
    """Return a curve that MLflow has."""
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run, name))


def kept(client: MlflowClient, run: str) -> dict[str, bytes]:
    """Return the files that MLflow has."""
    folder = Path(unquote(urlparse(client.get_run(run).info.artifact_uri).path))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_a_run_is_there_with_its_recipe_curves_and_files(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = {"sqlite": "sqlite:///store.db", "file": (tmp_path / "store").as_uri()}[store]
    logger = {"name": "mlflow", "tracking_uri": uri, "experiment": "toys", "run_name": "first", "tags": {"team": "one"}}
    losses = [{"name": "cross-entropy", "smoothing": 0.2}, {"name": "triplet"}]
    recipe = tiny_recipe(tmp_path, logger=[{**logger, "model": True}], loss=losses, evaluation={"every": 1})
    done = run_cli("run", recipe, "-q")
    assert (done.status, done.err) == (0, "")
    folder = tmp_path / "runs" / "toy"
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    curves = logged(folder)
    assert {"train/loss", "train/losses/triplet", "train/lr", "epoch/loss", "folder/mAP"} < set(curves)
    assert len(curves["folder/mAP"]) == 2
    assert {name: history(client, run.info.run_id, name) for name in run.data.metrics} == curves
    assert run.data.params["backbone.name"] == "core:resnet18"
    assert run.data.params["loss.0.smoothing"] == "0.2"
    assert run.data.params["backbone.non_local"] == "[0, 0, 0, 0]"
    assert run.data.params["input.height"] == "32"
    assert not [key for key in run.data.params if key.startswith("versions")]
    assert run.data.tags["version.reidcore"] == reidcore.__version__
    assert run.data.tags["team"] == "one"
    names = {"recipe.toml", "metrics.json", "log.jsonl", "model.safetensors"}
    assert kept(client, run.info.run_id) == {name: (folder / name).read_bytes() for name in names}


def test_by_default_the_store_is_beside_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tmp_path, logger=[{"name": "mlflow"}])
    sets = ("--set", "training.epochs=0", "--set", "run.name=first try")
    assert run_cli("run", recipe, "-q", *sets).status == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first try", "mlflow.db", "mlartifacts"}
    assert not (tmp_path / "mlruns").exists()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("reidcore").experiment_id])
    assert run.info.run_name == "first try"
    assert set(kept(client, run.info.run_id)) == {"recipe.toml", "metrics.json", "log.jsonl"}


def test_the_environment_says_where_the_store_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    MLflowRun(tmp_path / "runs" / "toy").close()
    assert (tmp_path / "other.db").is_file() and not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_resumed_run_goes_on_with_its_run(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, logger=[{"name": "mlflow"}])
    folder = tmp_path / "runs" / "toy"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    told = MLflowRun.log

    def fail(self, event):
        told(self, event)
        if event["kind"] == "step" and event["step"] == 11:
            raise RunError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(MLflowRun, "log", fail)
        assert run_cli("run", recipe, "-q") == (2, "", "enough\n")
    (run,) = client.search_runs([client.get_experiment_by_name("reidcore").experiment_id])
    assert run.info.status == "FAILED"
    before = history(client, run.info.run_id, "train/loss")
    assert [step for step, _ in before] == list(range(1, 12))
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    assert int(checkpoints[-1].stem.removeprefix("step-")) < 11  # so that some steps come again

    with monkeypatch.context() as patch:
        patch.setattr("reidcore.loop._tell", lambda run, event: setattr(run, "interrupted", True))
        assert run_cli("run", recipe, "-q", "--resume").status == 2
    assert client.get_run(run.info.run_id).info.status == "KILLED"

    running = []
    monkeypatch.setattr(
        MLflowRun, "log", lambda self, event: (running.append(client.get_run(self.run).info.status), told(self, event))
    )
    assert run_cli("run", recipe, "-q", "--resume", "--set", "optimizer.lr=3e-4").status == 0
    assert set(running) == {"RUNNING"}
    (again,) = client.search_runs([run.info.experiment_id])
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    after = history(client, run.info.run_id, "train/loss")
    assert after[:11] == before
    steps = [step for step, _ in logged(folder)["train/loss"]]
    assert [step for step, _ in after] == steps == list(range(1, len(steps) + 1))
    assert again.data.params["optimizer.lr"] == run.data.params["optimizer.lr"]  # MLflow's are for ever
    assert tomli.loads(kept(client, run.info.run_id)["recipe.toml"].decode())["optimizer"]["lr"] == 3e-4


@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_in_another_store_a_resumed_run_begins_anew(store, tmp_path):
    uris = [{"sqlite": f"sqlite:///{tmp_path}/{n}.db", "file": (tmp_path / n).as_uri()}[store] for n in "ab"]
    runs = []
    for uri in (*uris, uris[1]):
        logger = MLflowRun(tmp_path, uri)
        logger.close()
        runs.append(logger.run)
    assert runs[0] != runs[1] == runs[2]


def test_names_that_mlflow_does_not_take_are_changed(tmp_path):
    logger = MLflowRun(tmp_path, f"sqlite:///{tmp_path}/a.db")
    logger.log({"kind": "evaluation", "step": 1, "test": "day → night (flip)//50%", "metrics": {"mAP": 0.5}})
    logger.close()
    assert logger.client.get_run(logger.run).data.metrics == {"day - night -flip-/50-/mAP": 0.5}


def test_a_failure_ends_no_training_and_what_was_not_sent_comes_later(tmp_path, monkeypatch):
    monkeypatch.setattr("reid_mlflow.logger.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("reid_mlflow.logger.SEND_SECONDS", 0.0)
    logger = MLflowRun(tmp_path, f"sqlite:///{tmp_path}/a.db")

    def fail(*_, **__):
        raise MlflowException("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(logger.client, "log_batch", fail)
        with pytest.warns(RuntimeWarning, match="MLflow: no answer; what could not be sent is sent later"):
            logger.log({**STEP, "step": 1})
    logger.log({**STEP, "step": 2})
    assert history(logger.client, logger.run, "train/lr") == [(1, 0.1), (2, 0.1)]
    logger.log(END)
    monkeypatch.setattr(logger.client, "log_artifact", fail)
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.warns(RuntimeWarning, match=f"no answer; what is missing there is in {tmp_path}"):
        logger.close()


def test_after_a_failure_mlflow_is_left_alone_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("reid_mlflow.logger.SEND_SECONDS", 0.0)
    logger = MLflowRun(tmp_path, f"sqlite:///{tmp_path}/a.db")
    tried = []

    def fail(*_, **__):
        tried.append(1)
        raise MlflowException("no answer")

    monkeypatch.setattr(logger.client, "log_batch", fail)
    with pytest.warns(RuntimeWarning):
        for step in range(5):
            logger.log({**STEP, "step": step})
    assert len(tried) == 1


def test_what_cannot_be_reached_is_an_error_and_the_run_can_be_tried_again(tmp_path):
    recipe = tiny_recipe(tmp_path, logger=[{"name": "mlflow", "tracking_uri": "gopher://nowhere"}])
    done = run_cli("run", recipe, "-q")
    assert done.status == 2
    assert done.err.startswith("MLflow: ") and "gopher" in done.err
    assert not (tmp_path / "runs" / "toy" / "recipe.toml").exists()


def test_listing_does_not_import_mlflow():
    code = (
        "from reidcore.cli import main; main(['components', 'logger']); import sys; assert 'mlflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "mlflow" in done.stdout) == (0, True), done.stderr
