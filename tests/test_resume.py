"""A run killed with SIGKILL and resumed ends in the same weights, bit for bit, as one that was never stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLER = '''
"""A logger that kills the process, a head with dropout (which uses the random state), checkpoints at every step."""

import os
import signal

from attrs import frozen
from reidcore import Component, hookimpl, option


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    def __init__(self, step):
        self.step = step

    def log(self, event):
        if event["kind"] == "step" and event["step"] == self.step:
            die()

    def close(self): ...


@frozen(kw_only=True)
class KillerConfig:
    """Kill the process."""

    step: int = option(-1, help="after this step")
    writing: str = option("nothing", help="in the middle of writing a file of this name")
    count: int = option(1, help="the how manieth of them")
    often: bool = option(True, help="write a checkpoint at every step")

    def build(self, folder):
        import reidcore.checkpoint
        import reidcore.loop

        if self.often:
            reidcore.loop.SAVE_SECONDS = 0
        save_file, count = reidcore.checkpoint.save_file, 0

        def save(tensors, file, metadata):
            nonlocal count
            save_file(tensors, file, metadata)
            count += self.writing in file.name
            if count == self.count:
                os.truncate(file, os.path.getsize(file) // 2)
                die()

        reidcore.checkpoint.save_file = save
        return Killer(self.step)


@frozen(kw_only=True)
class DropoutConfig:
    """A linear head behind a dropout."""

    def build(self, dim, classes):
        from torch import nn
        from reidcore.builtin.modules.heads import ClassifierHead

        class DropoutHead(ClassifierHead):
            def forward(self, x):
                return super().forward(nn.functional.dropout(x, 0.3, self.training))

        return DropoutHead(dim, classes, neck=True)


@hookimpl
def reidcore_loggers():
    yield Component(name="killer", config=KillerConfig)


@hookimpl
def reidcore_heads():
    yield Component(name="dropout", config=DropoutConfig)
'''

OPTIONS = (
    "head.name=dropout",
    "training.ema=0.9",
    "training.accumulate=2",
    "training.epochs=3",
    "transform.1.name=random-erasing",
    "input.workers=1",
    "evaluation.holdout=0.2",
    "evaluation.every=1",
)


@pytest.fixture
def run(toy_recipe, write):
    """Return a function that runs the toy recipe in a process of its own."""
    plugin = write("killer.py", KILLER)

    def run_process(name: str, *overrides: str, resume: bool = False) -> subprocess.CompletedProcess[str]:
        sets = [word for item in (*OPTIONS, f"run.name={name}", *overrides) for word in ("--set", item)]
        command = [sys.executable, "-m", "reidcore", "run", toy_recipe, "--plugin", plugin, *sets]
        command += ["--resume"] if resume else []
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)

    return run_process


def weights(toy_recipe: Path, name: str) -> bytes:
    """Return the bytes of a run's weights."""
    return (toy_recipe.parent / "runs" / name / "model.safetensors").read_bytes()


KILLS = {
    "in the middle of an epoch": "logger=[{name='killer', step=3}]",
    "while a checkpoint is written": "logger=[{name='killer', writing='step-', count=3}]",
    "before the first checkpoint": "logger=[{name='killer', step=1, often=false}]",
    "while the best epoch is written": "logger=[{name='killer', writing='best', often=false}]",
    "while the weights are written": "logger=[{name='killer', writing='model', often=false}]",
}


@pytest.mark.parametrize(
    "moments", [list(KILLS)[:2], pytest.param(list(KILLS)[2:], marks=pytest.mark.slow)], ids="+".join
)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(moments, run, toy_recipe):
    whole = run("whole", "logger=[{name='killer', often=false}]")
    assert whole.returncode == 0, whole.stderr
    expected = weights(toy_recipe, "whole")
    for number, moment in enumerate(moments):
        killed = run(f"killed{number}", KILLS[moment])
        assert killed.returncode == -9, (moment, killed.stderr)
        assert not (toy_recipe.parent / "runs" / f"killed{number}" / "model.safetensors").exists(), moment
        resumed = run(f"killed{number}", resume=True)
        assert resumed.returncode == 0, (moment, resumed.stderr)
        assert weights(toy_recipe, f"killed{number}") == expected, moment


def test_the_log_has_every_step_once_after_a_resume(run, toy_recipe):
    run("killed", "logger=[{name='killer', step=5, often=false}]")
    log = toy_recipe.parent / "runs" / "killed" / "log.jsonl"
    with log.open("a") as stream:
        stream.write('{"kind": "step", "st')  # what a kill in the middle of a line leaves
    assert run("killed", resume=True).returncode == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [event["step"] for event in events if event["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert [event["kind"] for event in events].count("resume") == 1
