"""The training loop: steps, accumulation, averaging, freezing, choice of the best epoch, what stops it."""

import json
from collections import defaultdict

import pytest
import torch
from attrs import frozen
from torch import nn

from reidcore import Component, option
from reidcore.assemble import assemble, read_data
from reidcore.catalog import Catalog
from reidcore.checkpoint import load_state, save_state
from reidcore.errors import DataError, RunError
from reidcore.loop import checkpoints, fit
from reidcore.recipe import load_recipe
from reidcore.types import MapShape, Needs


class FlatNet(nn.Module):
    """A backbone without batch norm, so that a batch's images do not see each other."""

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.shapes = {"last": MapShape(8, 7, 3)}

    def forward(self, images, want, cameras=None):
        return {"last": self.conv(images).relu()}

    def tail(self, after):
        return nn.Sequential()


@frozen(kw_only=True)
class FlatNetConfig:
    """A backbone without batch norm."""

    def build(self, height, width):
        return FlatNet()


class Poison(nn.Module):
    """A loss that becomes infinite at a step, and has a parameter and a memory of what it was told."""

    needs = Needs()

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.scale = nn.Parameter(torch.ones(()))
        self.told = []

    def forward(self, output, batch, step):
        value = output.embedding.square().mean() * self.scale
        return {"poison": value / (0 if step.number == self.step else 1)}

    def after_step(self, run):
        self.told.append(("step", run.step))

    def after_epoch(self, run):
        self.told.append(("epoch", run.epoch))


@frozen(kw_only=True)
class PoisonConfig:
    """A loss that becomes infinite at a step."""

    step: int = option(-1, help="the step")

    def build(self, parts):
        return Poison(self.step)


CATALOG = Catalog.of(
    backbones=[Component(name="flat", config=FlatNetConfig)], losses=[Component(name="poison", config=PoisonConfig)]
)
FLAT = ("backbone.name=flat", "aggregator.name=avg", "aggregator.source=last", "head.name=linear")


class Recorder:
    """A logger that keeps the events, and calls back at each."""

    def __init__(self):
        self.events = defaultdict(list)
        self.hear = lambda event: None

    def log(self, event):
        self.events[event["kind"]].append(dict(event))
        self.hear(event)

    def close(self): ...


@pytest.fixture
def make(toy_recipe, tmp_path):
    """Return a function that assembles a run of the toy recipe, with a recorder as its logger."""
    numbers = iter(range(100))

    def make_run(*overrides, score=lambda model, epoch: None, folder=None):
        loaded = load_recipe(toy_recipe, overrides=overrides, catalog=CATALOG)
        run = assemble(loaded, read_data(loaded), folder or tmp_path / f"run{next(numbers)}", score)
        run.loggers = [Recorder()]
        return run

    return make_run


def events(run, kind):
    """Return what the run's recorder heard."""
    return run.loggers[0].events[kind]


def weights(model):
    """Return the parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


PLAIN_SGD = ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0", "optimizer.momentum=0")
FLAT_RATE = ("scheduler.warmup=0", "scheduler.flat_until=1.0")


def test_a_run_is_reproducible_and_depends_on_the_seed(make):
    first, again, other = (weights(fit(make(*FLAT, f"run.seed={seed}"))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("accumulate", "groups"), [(1, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_a_step_takes_the_mean_gradient_of_its_batches(accumulate, groups, make):
    run = make(
        *FLAT,
        *PLAIN_SGD,
        *FLAT_RATE,
        "loss=[{name='cross-entropy'}]",
        "training.epochs=1",
        f"training.accumulate={accumulate}",
        "sampler.identities=4",
        "sampler.instances=3",
    )
    batches = list(run.make_loader(run.train).batches(0))
    assert len(batches) == 3
    expected = make(*FLAT, "loss=[{name='cross-entropy'}]")
    expected.model.train()
    for group in groups:
        gradients = torch.zeros_like(weights(expected.model))
        for batch in [batches.pop(0) for _ in range(group)]:
            expected.model.zero_grad()
            sum(expected.losses(expected.forward(batch), batch, None).values()).backward()
            gradients += torch.cat([parameter.grad.flatten() for parameter in expected.model.parameters()])
        vector = weights(expected.model) - 0.1 * gradients / group
        nn.utils.vector_to_parameters(vector, expected.model.parameters())
    fit(run)
    assert run.step == len(groups) == len(events(run, "step"))
    torch.testing.assert_close(weights(run.model), weights(expected.model))


def test_the_average_follows_the_weights_step_by_step(make):
    run = make(*FLAT, "training.ema=0.9", "training.epochs=1")
    expected = weights(run.model)

    def hear(event):
        nonlocal expected
        if event["kind"] == "step":
            decay = min(0.9, (1 + event["step"]) / (10 + event["step"]))
            expected = decay * expected + (1 - decay) * weights(run.model)

    run.loggers[0].hear = hear
    result = fit(run)
    assert run.step >= 3
    torch.testing.assert_close(weights(result), expected)
    assert not torch.equal(weights(result), weights(run.model))


def test_frozen_modules_do_not_learn_until_their_time_is_over(make):
    run = make("training.freeze=['backbone.layer1', 'heads']", "training.freeze_iterations=4", "training.epochs=2")
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    changed = {}

    def hear(event):
        if event["kind"] == "step":
            now = run.model.state_dict()
            changed[event["step"]] = {name for name, old in state.items() if not torch.equal(old, now[name])}

    run.loggers[0].hear = hear
    fit(run)
    frozen = ("backbone.layer1.", "heads.")
    assert run.step > 4
    assert not any(name.startswith(frozen) for name in changed[4])
    assert "backbone.layer2.0.conv1.weight" in changed[1]
    assert "backbone.layer1.0.conv1.weight" in changed[5]
    assert "backbone.layer1.0.bn1.running_mean" in changed[5]
    assert "heads.global.norm.bias" not in changed[run.step]


def test_a_prefix_that_is_no_module_is_an_error(make):
    run = make("training.freeze=['backbone.layr1']", "training.freeze_iterations=1")
    with pytest.raises(RunError, match=r"the model has no module 'backbone.layr1'; did you mean 'backbone.layer1'"):
        fit(run)


def test_the_gradient_is_clipped_to_the_norm(make):
    run = make(*FLAT, *PLAIN_SGD, *FLAT_RATE, "training.clip_norm=0.01", "training.epochs=1")
    before = weights(run.model)
    steps = []

    def hear(event):
        nonlocal before
        if event["kind"] == "step":
            steps.append((weights(run.model) - before).norm().item() / 0.1)
            before = weights(run.model)

    run.loggers[0].hear = hear
    fit(run)
    assert steps == pytest.approx([0.01] * len(steps), rel=1e-3)


def test_the_best_epoch_is_the_result_when_there_is_a_score(make):
    scores = {1: 0.2, 2: 0.9, 3: 0.5}
    seen = {}

    def score(model, epoch):
        seen[epoch] = weights(model)
        return scores[epoch]

    run = make(*FLAT, "training.epochs=3", "evaluation.every=1", score=score)
    result = fit(run)
    assert (run.best, run.best_epoch) == (0.9, 2)
    assert torch.equal(weights(result), seen[2])


def test_the_last_epoch_is_the_result_when_there_is_none(make):
    seen = {}
    run = make(
        *FLAT,
        "training.epochs=3",
        "evaluation.every=2",
        score=lambda model, epoch: seen.update({epoch: weights(model)}),
    )
    result = fit(run)
    assert list(seen) == [2, 3]
    assert torch.equal(weights(result), seen[3])


def test_parts_are_told_of_steps_and_epochs_and_their_parameters_learn(make):
    run = make(*FLAT, "loss=[{name='poison'}]")
    fit(run)
    (loss,) = run.losses.terms
    per_epoch = run.step // 2
    assert loss.told[:per_epoch] == [("step", number) for number in range(1, per_epoch + 1)]
    assert loss.told[per_epoch] == ("epoch", 1)
    assert loss.scale.item() != 1


def test_weights_multiply_the_terms_and_terms_of_one_name_are_numbered(make):
    run = make(*FLAT, "loss=[{name='poison'}, {name='poison', weight=3}]")
    fit(run)
    event = events(run, "step")[0]
    assert event["losses"]["poison-2"] == pytest.approx(3 * event["losses"]["poison"])
    assert event["loss"] == pytest.approx(4 * event["losses"]["poison"])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(make):
    run = make(*FLAT, "loss=[{name='poison', step=8}]", "training.epochs=3")
    with pytest.raises(RunError, match=r"epoch 2, step 9 \(poison = inf\); lower optimizer.lr") as caught:
        fit(run)
    assert "--resume" in str(caught.value)
    assert [file.name for file in checkpoints(run.folder)] == ["step-000000006.safetensors"]


def test_a_lower_rate_counts_after_resuming(make, tmp_path):
    folder = tmp_path / "run"
    first = make(*FLAT, *FLAT_RATE, "optimizer.lr=0.1", "training.epochs=1", folder=folder)
    fit(first)
    second = make(*FLAT, *FLAT_RATE, "optimizer.lr=0.01", "training.epochs=2", folder=folder)
    fit(second, resume=True)
    assert second.step == 2 * first.step
    assert {event["lr"] for event in events(second, "step")} == {0.01}


def test_a_checkpoint_with_one_random_state_as_they_once_had_is_gone_on_with(make, tmp_path):
    folder = tmp_path / "run"
    fit(make(*FLAT, *FLAT_RATE, "training.epochs=1", folder=folder))
    (file,) = checkpoints(folder)
    state = load_state(file)
    save_state(file, {**state, "random": state["random"][0]})
    older = make(*FLAT, *FLAT_RATE, "training.epochs=2", folder=folder)
    fit(older, resume=True)
    expected = make(*FLAT, *FLAT_RATE, "training.epochs=2")
    fit(expected)
    assert torch.equal(weights(older.model), weights(expected.model))


def test_a_checkpoint_of_another_model_is_an_error(make, tmp_path):
    fit(make(*FLAT, "training.epochs=1", folder=tmp_path / "run"))
    with pytest.raises(RunError, match="does not fit the recipe any more"):
        fit(make("training.epochs=2", folder=tmp_path / "run"), resume=True)


def test_an_image_that_goes_missing_stops_the_run_with_a_checkpoint(make, toy_folder):
    run = make(*FLAT, "training.epochs=2", "input.cache=0")
    run.loggers[0].hear = lambda event: (
        event["kind"] == "epoch" and [file.unlink() for file in (toy_folder / "train").glob("0003*")]
    )
    with pytest.raises(DataError, match=r"there is no image .*0003_c"):
        fit(run)
    assert run.step > 0
    assert checkpoints(run.folder)[-1].name == f"step-{run.step:09d}.safetensors"


def test_an_interrupted_run_ends_after_its_step_and_goes_on_to_the_same_weights(make, tmp_path):
    whole = fit(make(*FLAT))
    run = make(*FLAT, folder=tmp_path / "run")

    def hear(event):
        if event["kind"] == "step" and event["step"] == 2:
            run.interrupted = True

    run.loggers[0].hear = hear
    with pytest.raises(RunError, match="stopped at step 2; go on with --resume"):
        fit(run)
    assert torch.equal(weights(fit(make(*FLAT, folder=tmp_path / "run"), resume=True)), weights(whole))


def test_two_checkpoints_are_kept(make):
    run = make(*FLAT, "training.epochs=4")
    fit(run)
    per_epoch = run.step // 4
    names = [f"step-{per_epoch * epoch:09d}.safetensors" for epoch in (3, 4)]
    assert [file.name for file in checkpoints(run.folder)] == names


def test_events_are_json_and_say_how_fast_and_how_long(make):
    run = make(*FLAT, "training.epochs=1")
    fit(run)
    step = events(run, "step")[-1]
    assert {"epoch", "step", "steps", "loss", "lr", "images_per_second", "seconds_left"} <= set(step)
    assert set(step["losses"]) == {"cross-entropy", "triplet"}
    assert step["loss"] == pytest.approx(sum(step["losses"].values()))
    assert step["step"] == step["steps"]
    assert json.loads(json.dumps(step)) == step
    assert events(run, "epoch")[0]["images_per_second"] > 0


def test_bfloat16_trains_and_keeps_float32_weights(make):
    run = make("training.precision=bfloat16", "training.epochs=1")
    result = fit(run)
    assert {parameter.dtype for parameter in result.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in result.parameters())


def test_weights_that_are_not_finite_are_not_saved(make):
    run = make(
        *FLAT,
        *PLAIN_SGD,
        *FLAT_RATE,
        "optimizer.lr=1e38",
        "sampler.identities=6",
        "sampler.instances=3",
        "training.epochs=1",
    )
    with pytest.raises(RunError, match=r"blew up .* start again: there is no checkpoint yet"):
        fit(run)
    assert not checkpoints(run.folder)


def test_a_run_is_not_resumed_to_fewer_epochs(make, tmp_path):
    fit(make(*FLAT, "training.epochs=2", folder=tmp_path / "run"))
    with pytest.raises(RunError, match=r"is of epoch 2; training.epochs = 1 is less"):
        fit(make(*FLAT, "training.epochs=1", folder=tmp_path / "run"), resume=True)


def test_the_task_refuses_unlabelled_sets_that_it_would_not_use(make, toy_folder):
    run = make(*FLAT, "train.1.name=folder", f"train.1.root={toy_folder}", "train.1.role=target")
    assert len(run.targets) == 36
    with pytest.raises(RunError, match="learns from labelled images only"):
        fit(run)
