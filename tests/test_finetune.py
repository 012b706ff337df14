"""Starting from another run's weights, and backbones that are frozen at first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from torch import Tensor, nn

from reidcore.assemble import assemble, read_data
from reidcore.checkpoint import load_fitting, load_tensors, save_tensors
from reidcore.errors import RunError
from reidcore.loop import Run, fit
from reidcore.recipe import load_recipe

UNTRAINED = ("training.epochs=0",)
FOUR_CLASSES = ("evaluation.holdout=0.34", "sampler.identities=2")


@pytest.fixture
def train(toy_recipe: Path, reidcore: Any) -> Callable[..., str]:
    """Return a function that runs the toy recipe and returns what it wrote to standard error."""

    def run(*overrides: str, resume: bool = False) -> str:
        sets = [word for item in overrides for word in ("--set", item)]
        status, _, err = reidcore("run", toy_recipe, *sets, *(["--resume"] if resume else []))
        assert status == 0, err
        return str(err)

    return run


@pytest.fixture
def first(train: Callable[..., str], toy_recipe: Path) -> Path:
    """Return the folder of a run with 6 identities that has finished."""
    train("run.name=first", "training.epochs=1")
    return toy_recipe.parent / "runs" / "first"


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a run's model."""
    return load_tensors(folder / "model.safetensors")


def same(there: dict[str, Tensor], here: dict[str, Tensor]) -> set[str]:
    """Return the names of tensors that are equal in both."""
    return {name for name in there.keys() & here.keys() if torch.equal(there[name], here[name])}


def test_a_run_with_other_classes_starts_from_all_but_the_classifier(first: Path, train: Callable[..., str]) -> None:
    said = train(*UNTRAINED, *FOUR_CLASSES, f"run.init={first}", "training.ema=0.9")
    second = first.with_name("toy")
    there, here = weights(first), weights(second)
    assert there.keys() == here.keys()
    assert there.keys() - same(there, here) == {"heads.global.classifier.weight"}
    assert here["heads.global.classifier.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert (
        f"started from {first}: {len(here) - 1} of {len(here)} tensors fit\n"
        "  heads.global.classifier.weight: 6 x 128 there, 4 x 128 here\n"
    ) in said
    events = [json.loads(line) for line in (second / "log.jsonl").read_text().splitlines()]
    (event,) = (event for event in events if event["kind"] == "init")
    assert event == {
        "kind": "init",
        "run": str(first),
        "loaded": len(here) - 1,
        "only_here": [],
        "only_there": [],
        "reshaped": {"heads.global.classifier.weight": [[6, 128], [4, 128]]},
    }


def test_a_run_with_another_head_and_pooling_says_what_is_left_over(first: Path, train: Callable[..., str]) -> None:
    said = train(*UNTRAINED, "head.name=linear", "aggregator.name=avg", f"run.init={first}")
    there, here = weights(first), weights(first.with_name("toy"))
    assert same(there, here) == here.keys()
    assert "aggregator.pool.alpha: only there, not used" in said
    assert "heads.global.norm: 5 tensors only there, not used" in said


def test_training_goes_on_from_the_weights(first: Path, train: Callable[..., str]) -> None:
    train(f"run.init={first}", "optimizer.lr=1e-12", "training.epochs=1")
    there, here = weights(first), weights(first.with_name("toy"))
    for name in ("backbone.layer3.0.conv1.weight", "heads.global.classifier.weight"):
        torch.testing.assert_close(here[name], there[name])


def test_the_recipe_keeps_the_key_and_the_weights_that_it_did_not_read(
    first: Path, train: Callable[..., str], reidcore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first.parent.parent)
    train(*UNTRAINED, "run.init=runs/first", "backbone.weights=/nowhere.pth")  # relative to the working directory
    second = first.with_name("toy")
    recipe = tomli.loads((second / "recipe.toml").read_text())
    assert (recipe["run"]["init"], recipe["backbone"]["weights"]) == ("runs/first", "/nowhere.pth")
    assert same(weights(first), weights(second)) == weights(first).keys()
    shutil.rmtree(first)
    assert reidcore("evaluate", second)[0] == 0  # a finished run needs neither


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_from_the_weights_again(
    first: Path, train: Callable[..., str]
) -> None:
    second = first.with_name("toy")
    train(*UNTRAINED, f"run.init={first}")
    for name in ("model.safetensors", "metrics.json"):
        (second / name).unlink()
    train(*UNTRAINED, f"run.init={first}", resume=True)
    assert same(weights(first), weights(second)) == weights(first).keys()


def test_a_resumed_run_goes_on_from_its_checkpoint_without_the_other_run(
    first: Path, train: Callable[..., str]
) -> None:
    second = first.with_name("toy")
    train(f"run.init={first}", "training.epochs=1")
    trained = weights(second)
    for name in ("model.safetensors", "metrics.json"):
        (second / name).unlink()
    shutil.rmtree(first)
    assert "started from" not in train(f"run.init={first}", "training.epochs=1", resume=True)
    assert same(trained, weights(second)) == trained.keys()


def test_what_is_no_run_to_start_from_is_refused_before_anything_is_written(
    toy_recipe: Path, tmp_path: Path, reidcore: Any
) -> None:
    def refusal(init: Path) -> str:
        status, _, err = reidcore("run", toy_recipe, "--set", f"run.init={init}")
        assert status == 2
        return str(err)

    expected = "expected the folder of a finished run\n"
    assert refusal(tmp_path / "runs" / "x") == f"run.init: there is no folder {tmp_path / 'runs' / 'x'}; {expected}"
    assert refusal(tmp_path) == f"run.init: {tmp_path} has no model.safetensors; {expected}"
    file = tmp_path / "other" / "model.safetensors"
    save_tensors(file, {"body.weight": torch.ones(2), "backbone.bn1.num_batches_tracked": torch.tensor(1)}, {})
    assert refusal(file.parent) == (
        f"run.init: nothing in {file} fits this model; expected a run with the same backbone or head\n"
    )
    assert not (tmp_path / "runs").exists()
    assert reidcore("check", toy_recipe, "--set", "run.init=runs/x")[0] == 0  # it reads the recipe only
    assert reidcore("check", toy_recipe, "--build", "--set", "run.init=runs/x")[0] == 2


def test_misfits_are_told_a_line_a_module(tmp_path: Path) -> None:
    def model(width: int, **heads: nn.Module) -> nn.Module:
        stage = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 3))
        return nn.ModuleDict({"backbone": nn.ModuleDict({"stage": stage}), "heads": nn.ModuleDict(heads)})

    file = tmp_path / "model.safetensors"
    save_tensors(file, model(5, a=nn.Linear(3, 2), b=nn.BatchNorm1d(2)).state_dict(), {})
    here = model(4, a=nn.Linear(3, 2), c=nn.Linear(2, 2, bias=False))
    taken = load_fitting(here, file)
    assert torch.equal(here.get_parameter("heads.a.weight"), load_tensors(file)["heads.a.weight"])
    assert taken.loaded == 3  # heads.a, and one bias of the stage
    assert taken.misfits() == [
        "backbone.stage: 3 tensors of another shape, backbone.stage.0.weight: 5 x 3 there, 4 x 3 here",
        "heads.c.weight: only here, not loaded",
        "heads.b: 5 tensors only there, not used",
    ]


class Stopper:
    """A logger that has the run stop after a step, and keeps the weights of that moment."""

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step = run, step

    def log(self, event: Any) -> None:
        self.run.interrupted = event["kind"] == "step" and event["step"] == self.step

    def close(self) -> None: ...


def test_freezing_goes_on_where_it_was_after_a_resume(toy_recipe: Path, tmp_path: Path) -> None:
    options = ("training.freeze=['backbone']", "training.freeze_iterations=8")

    def make(name: str, *overrides: str) -> Run:
        loaded = load_recipe(toy_recipe, overrides=(*options, *overrides))
        return assemble(loaded, read_data(loaded), tmp_path / name, lambda model, epoch: None)

    whole = fit(make("whole"))
    stopped = make("stopped")
    start = {name: value.clone() for name, value in stopped.model.backbone.state_dict().items()}
    stopped.loggers = [Stopper(stopped, 3)]
    with pytest.raises(RunError, match="stopped at step 3"):
        fit(stopped)
    resumed = make("stopped")
    resumed.loggers = [Stopper(resumed, 8)]
    with pytest.raises(RunError, match="stopped at step 8"):
        fit(resumed, resume=True)
    frozen = resumed.model.backbone.state_dict()
    assert same(start, frozen) == start.keys()  # the running statistics of batch norms too
    last = fit(make("stopped"), resume=True).state_dict()
    assert same(whole.state_dict(), last) == last.keys()
    assert "layer1.0.bn1.running_mean" not in same(start, whole.backbone.state_dict())


def test_freezing_all_that_the_losses_see_is_refused(toy_recipe: Path, reidcore: Any) -> None:
    overrides = (
        "training={freeze=['backbone'], freeze_iterations=1}",
        "aggregator.name=avg",
        "loss=[{name='triplet'}]",
    )
    status, _, err = reidcore("run", toy_recipe, "-q", *(word for item in overrides for word in ("--set", item)))
    assert (status, err) == (
        2,
        "no loss reaches a parameter that learns; freeze less (training.freeze), or add another loss\n",
    )
