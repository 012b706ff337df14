"""What loggers are told, and TensorBoard's files read back."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from reidcore.events import numbers

LOSSES = {"cross-entropy": 2.0, "triplet": 1.0}
STEP = {"kind": "step", "epoch": 1, "step": 7, "steps": 9, "loss": 3.0, "losses": LOSSES, "lr": 0.1}
KILLER = """
import os
import signal

from attrs import frozen
from reidcore import Component, hookimpl, option


class Killer:
    def __init__(self, step):
        self.step = step

    def log(self, event):
        if event["kind"] == "step" and event["step"] == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self): ...


@frozen(kw_only=True)
class KillerConfig:
    '''Kill the process.'''

    step: int = option(help="after this step")

    def build(self, folder):
        return Killer(self.step)


@hookimpl
def reidcore_loggers():
    yield Component(name="killer", config=KillerConfig)
"""


def test_figures_are_called_by_what_they_are_of():
    losses = {"losses/cross-entropy": 2.0, "losses/triplet": 1.0}
    step = {"train/loss": 3.0, "train/lr": 0.1, **{f"train/{k}": v for k, v in losses.items()}}
    assert numbers({**STEP, "seconds_left": 5.0}) == step
    epoch = {"kind": "epoch", "epoch": 2, "step": 9, "loss": 3.0, "losses": LOSSES, "seconds": 4}
    assert numbers(epoch) == {"epoch/loss": 3.0, "epoch/seconds": 4.0, **{f"epoch/{k}": v for k, v in losses.items()}}
    tested = {"kind": "evaluation", "epoch": 2, "step": 9, "test": "people re-ranked", "metrics": {"mAP": 0.5}}
    assert numbers({**tested, "queries": 6, "covered": 6}) == {"people re-ranked/mAP": 0.5}
    assert numbers({**tested, "chosen": {"blend": 0.8}})["people re-ranked/chosen/blend"] == 0.8
    task = {"kind": "round", "step": 1, "text": "3 clusters", "outliers": 0.2, "clusters": [2, 1], "refined": True}
    assert numbers(task) == {"round/outliers": 0.2}
    assert numbers({"kind": "init", "loaded": 12}) == {}


def ends(folder: Path) -> list[dict]:
    """Return the "end" events of a run's log."""
    events = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [event for event in events if event["kind"] == "end"]


def test_the_log_says_how_a_run_ended(toy_recipe, reidcore, monkeypatch):
    folder = toy_recipe.parent / "runs" / "toy"
    with monkeypatch.context() as patch:
        patch.setattr("reidcore.loop.Losses.forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reidcore("run", toy_recipe, "-q")
    failed = {"kind": "end", "epoch": 0, "step": 0, "status": "failed", "text": "division by zero"}
    assert ends(folder) == [failed]
    with monkeypatch.context() as patch:
        patch.setattr("reidcore.loop._tell", lambda run, event: setattr(run, "interrupted", True))
        assert reidcore("run", toy_recipe, "-q", "--resume").status == 2
    assert reidcore("run", toy_recipe, "-q", "--resume").status == 0
    first, stopped, last = ends(folder)
    assert first == failed
    assert (stopped["status"], stopped["step"]) == ("interrupted", 1)
    assert "go on with --resume" in stopped["text"]
    assert (last["status"], last["epoch"]) == ("finished", 2) and "text" not in last


def test_without_tensorboard_it_says_what_to_install_and_begins_nothing(toy_recipe, reidcore, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    choose = ("--set", 'logger=[{name="tensorboard"}]')
    status, _, err = reidcore("run", toy_recipe, "-q", *choose)
    assert (status, err) == (2, 'TensorBoard is not installed; pip install "reidcore[tensorboard]"\n')
    assert reidcore("run", toy_recipe, "-q", "--set", "training.epochs=0").status == 0  # in the same folder


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run's log: `{name: [(step, value)]}`."""
    curves = defaultdict(list)
    for line in (folder / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        for name, value in numbers(event).items():
            curves[name].append((event["step"], pytest.approx(value, rel=1e-6)))  # the files have float32
    return dict(curves)


def shown(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, str]]]]:
    """Return the curves and texts that TensorBoard shows of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "tensors": 0}).Reload()
    curves = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode()) for event in found.Tensors(tag)
        ]
        for tag in found.Tags()["tensors"]
    }
    return curves, texts


def test_tensorboard_shows_what_the_log_has(toy_recipe, reidcore):
    pytest.importorskip("tensorboard")
    sets = ("--set", 'logger=[{name="tensorboard"}]', "--set", "evaluation.before=true", "--set", "loss.0.name=triplet")
    assert reidcore("run", toy_recipe, "-q", *sets).status == 0
    folder = toy_recipe.parent / "runs" / "toy"
    curves, texts = shown(folder)
    assert curves == logged(folder)
    assert {"train/loss", "train/losses/triplet", "train/lr", "train/images_per_second", "epoch/seconds"} < set(curves)
    assert [step for step, _ in curves["folder/mAP"]] == [0, len(curves["train/loss"])]
    assert texts == {"recipe": [(0, f"```toml\n{(folder / 'recipe.toml').read_text()}\n```")]}


def test_tensorboard_shows_every_step_of_a_killed_run_once(toy_recipe, write, reidcore):
    pytest.importorskip("tensorboard")
    folder = toy_recipe.parent / "runs" / "toy"
    loggers = ("--set", 'logger=[{name="tensorboard"}, {name="killer", step=STEP}]')
    command = ["run", toy_recipe, "-q", "--plugin", write("killer.py", KILLER), *loggers, "--set", "evaluation.every=1"]
    later = [str(word).replace("STEP", "-1") for word in command]
    killed = [str(word).replace("STEP", "11") for word in command]
    done = subprocess.run([sys.executable, "-m", "reidcore", *killed], capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    before, _ = shown(folder)
    assert before == logged(folder)
    assert len(before["train/loss"]) == 11
    (known, _), *more = before["epoch/loss"]
    assert 1 < known < 11 and not more  # the steps after the first epoch are in no checkpoint
    assert reidcore(*later, "--resume").status == 0
    after, texts = shown(folder)
    assert after == logged(folder)
    assert [step for step, _ in after["train/loss"]] == list(range(1, 2 * known + 1))
    assert [step for step, _ in texts["recipe"]] == [0, known + 1]
