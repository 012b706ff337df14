"""Tasks that give their images other labels as they go: what the loop, the losses and checkpoints make of them."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch import nn

from reidcore import Component, option
from reidcore.assemble import assemble, read_data
from reidcore.builtin.modules.classification import (
    AdaptiveCrossEntropy,
    ArcFace,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
)
from reidcore.builtin.modules.pairs import PairCircle, Triplet
from reidcore.catalog import Catalog
from reidcore.checkpoint import load_metadata
from reidcore.errors import DataError, RunError
from reidcore.loop import checkpoints, fit, prepare
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli
from reidcore.types import Batch, Mixture, Output, Step, Stream


class Growing(nn.Module):
    """Before every other epoch the target's images get other classes, one more than before, and a new parameter."""

    def __init__(self):
        super().__init__()
        self.asked = []
        self.seen = defaultdict(list)
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("made", torch.tensor(-1))

    def prepare(self, run):
        self.run = run
        self.scale = nn.Parameter(torch.ones(()))

    def round(self, epoch, run):
        self.asked.append(epoch)
        if epoch % 2 == 0 and self.made != epoch:
            features = run.extract(run.deployed, run.targets).embeddings
            classes = 3 + epoch // 2
            order = torch.from_numpy(features[:, 0]).argsort().argsort()
            self.labels, self.made = order % classes, torch.tensor(epoch)
            dims = {view: head.dim for view, head in run.model.heads.items()}
            run.resize(classes, {view: torch.eye(dim)[:classes] for view, dim in dims.items()})
            self.scale = nn.Parameter(torch.full((), 1.0 + epoch))
            run.log(kind="round", step=run.step + 1, text=f"{classes} classes", classes=classes)
        elif run.streams:
            return None
        return {"target": Stream(run.targets, self.labels.numpy()), "source": run.train}

    def losses(self, batches, step):
        for name, batch in batches.items():
            self.seen[name].append(batch.indices.tolist())
        losses = self.run.losses(self.run.forward(batches["target"]), batches["target"], step)
        return losses | {"scale": self.scale * 0.01}

    def deploy(self):
        return self.run.model

    def load_state_dict(self, state):
        self.labels = torch.zeros_like(state["labels"])
        return super().load_state_dict(state)


@frozen(kw_only=True)
class GrowingConfig:
    """Gives the target more and more classes."""

    options: int = option(0, help="nothing")

    def build(self):
        return Growing()


CATALOG = Catalog.of(tasks=[Component(name="growing", config=GrowingConfig)])


class Recorder:
    """A logger that keeps the events, and interrupts the run after a step."""

    def __init__(self, run, stop=0):
        self.run, self.stop, self.events = run, stop, []

    def log(self, event):
        self.events.append(event)
        self.run.interrupted |= event["kind"] == "step" and event["step"] == self.stop

    def close(self): ...

    def of(self, kind):
        return [event for event in self.events if event["kind"] == kind]


@pytest.fixture
def make(toy_recipe, toy_folder, tmp_path):
    """Return a function that assembles a run of four epochs with a target."""
    sets = f"train=[{{name='folder', root='{toy_folder}'}}, {{name='folder', root='{toy_folder}', role='target'}}]"

    def make_run(name, *overrides, stop=0):
        fixed = (sets, "task={name='growing'}", "training.epochs=4", "training.ema=0.9", "sampler.identities=2")
        loaded = load_recipe(toy_recipe, overrides=(*fixed, *overrides), catalog=CATALOG)
        run = assemble(loaded, read_data(loaded), tmp_path / name, lambda model, epoch: None)
        run.loggers = [Recorder(run, stop)]
        return run

    return make_run


def states(module):
    """Return a module's values as one vector."""
    return torch.cat([value.double().flatten() for value in module.state_dict().values()])


def test_a_round_begins_each_epoch_and_is_asked_for_once(make):
    run = make("run")
    prepare(run)
    assert run.task.asked == [0]
    assert not run.loggers[0].events  # which are kept until the training begins
    fit(run)
    assert run.task.asked == [0, 1, 2, 3]
    assert [event["text"] for event in run.loggers[0].of("round")] == ["3 classes", "4 classes"]


def test_other_classes_and_parameters_are_learned(make):
    run = make("run", "optimizer.weight_decay=0")
    known = []
    run.loggers[0].log = lambda event: known.append({id(p) for g in run.optimizer.param_groups for p in g["params"]})
    fit(run)
    for module in (run.model, run.task):
        assert all(id(parameter) in known[-1] for parameter in module.parameters() if parameter.requires_grad)
    assert known[0] != known[-1]
    assert len(known[0]) == len(known[-1])
    assert (run.model.heads["global"].classifier.weight != torch.eye(128)[:4]).any()
    assert run.task.scale.item() != 3.0
    steps = {int(run.optimizer.state[p]["step"]) for p in run.model.backbone.parameters()}
    assert steps == {run.step}  # the moments of what stayed were kept
    assert int(run.optimizer.state[run.task.scale]["step"]) < run.step
    for name, value in run.model.state_dict().items():
        assert run.average.state_dict()[name].shape == value.shape


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_ends_in_the_same_state(make, stop):
    whole = make("whole")
    fit(whole)
    per_epoch = whole.step // 4
    assert per_epoch >= 2
    stop = {1: 1, 4: 2 * per_epoch, 7: 2 * per_epoch + 1}[stop]  # within a round, before one, within another
    stopped = make("stopped", stop=stop)
    with pytest.raises(RunError, match=f"stopped at step {stop}"):
        fit(stopped)
    resumed = make("stopped")
    fit(resumed, resume=True)
    for part in ("model", "average", "task"):
        assert torch.equal(states(getattr(whole, part)), states(getattr(resumed, part)))
    assert stopped.task.seen["source"] + resumed.task.seen["source"] == whole.task.seen["source"]
    assert stopped.task.seen["target"] + resumed.task.seen["target"] == whole.task.seen["target"]
    assert resumed.task.asked[0] == stop // per_epoch


def test_an_epoch_is_that_of_the_first_stream_and_others_go_on(make):
    # sources are longer than targets here, and the other way round
    for first, second in (("target", "source"), ("source", "target")):
        run = make(f"{first} first")
        kept = run.targets[:8]
        original = run.task.round

        def ordered(epoch, run, first=first, second=second, original=original, kept=kept):
            if (streams := original(epoch, run)) is None:
                return None
            short = Stream(kept, np.arange(8) % 3)
            return {first: streams[first] if first == "source" else short, second: {**streams, "target": short}[second]}

        run.task.round = ordered
        fit(run)
        loaders = {name: len(loader) for name, loader in run.loaders.items()}
        assert run.step == 4 * loaders[first]
        seen = run.task.seen[second]
        expected = []
        for epoch in range(run.step):
            expected += [list(batch) for batch in run.loaders[second].sampler.batches(epoch)]
        assert seen == expected[: run.step]


def test_a_task_of_a_plugin_is_heard_and_its_classes_are_no_identities(toy_recipe, toy_folder, write):
    plugin = write(
        "resizing.py",
        """
from attrs import frozen
from reidcore import Component, hookimpl
from reidcore.builtin.modules.train import Train


class Resizing(Train):
    def round(self, epoch, run):
        run.resize(6)
        run.log(kind="round", epoch=epoch + 1, step=run.step + 1, text=f"something new of epoch {epoch + 1}")
        return super().round(epoch, run)


@frozen(kw_only=True)
class Config:
    '''Takes as many fresh classes as there are identities, and says so.'''

    def build(self):
        return Resizing()


@hookimpl
def reidcore_tasks():
    yield Component(name="resizing", config=Config)
""",
    )
    for task, classes in (("train", [0, 1, 2, 3, 4, 5]), ("resizing", 6)):
        options = ["--set", f"task.name={task}", "--set", f"run.name={task}", "--plugin", plugin]
        done = run_cli("run", toy_recipe, *options)
        assert done.status == 0, done.err
        folder = toy_folder.parent / "runs" / task
        assert load_metadata(folder / "model.safetensors")["classes"] == classes
        assert run_cli("evaluate", folder, "--plugin", plugin).status == 0
        events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        heard = [event["epoch"] for event in events if event["kind"] == "round"]
        assert heard == ([] if task == "train" else [1, 2])
    assert "something new of epoch 1\n" in done.err
    assert "something new of epoch 2\n" in done.err


def test_the_best_epoch_may_have_other_classes_than_the_last(make):
    run = make("run", "evaluation.every=1")
    run.evaluate = lambda model, epoch: -abs(epoch - 2)
    result = fit(run)
    assert run.best_epoch == 2
    assert result is run.average
    assert len(result.heads["global"].classifier.weight) == 3 == run.classes


def test_target_images_alone_can_be_trained_on_by_who_labels_them(make, toy_folder):
    alone = f"train=[{{name='folder', root='{toy_folder}', role='target'}}]"
    run = make("run", alone)
    assert not run.train.samples
    original = run.task.round
    run.task.round = lambda *given: {"target": (original(*given) or run.streams)["target"]}
    fit(run)
    assert run.step > 0
    run = make("other", alone, "task={name='train'}")
    with pytest.raises(RunError, match="learns from labelled images only"):
        fit(run)


def test_no_images_at_all_are_an_error(make, tmp_path, toy_folder):
    for file in (toy_folder / "train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="hold no labelled training images"):
        make("run")


# labels that are guesses

STEP = Step(number=0, epoch=0)


def batch_of(labels, **more):
    n = len(labels)
    numbers = torch.arange(n)
    return Batch(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.tensor(labels), numbers, numbers, **more)


def output_of(x, logits):
    return Output(x, {"v": x}, {"v": x}, {"v": logits})


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(0.1, ["v"]),
        CrossEntropy(0.1, ["v"], "all"),
        AdaptiveCrossEntropy(0.2, ["v"]),
        BinaryCrossEntropy(0.1, ["v"]),
        Focal(0.25, 2.0, ["v"]),
        ArcFace(16.0, 0.3, 0.1, ["v"]),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_mixed_label_costs_the_mean_of_its_classes(loss):
    random = torch.Generator().manual_seed(0)
    logits = torch.rand(4, 5, generator=random) * 2 - 1
    classes = torch.tensor([[0, 3, 4], [2, 1, 0], [4, 0, 1], [1, 2, 3]])
    shares = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
    labels = [0, 2, 1, -1]
    mixed = batch_of(labels, mixture=Mixture(classes, shares))
    (found,) = loss(output_of(logits, logits), mixed, STEP).values()
    expected = 0.0
    for row in range(3):
        for place in range(3):
            one = output_of(logits[row : row + 1], logits[row : row + 1])
            (value,) = loss(one, batch_of([int(classes[row, place])]), STEP).values()
            expected += float(shares[row, place] * value) / 3
    assert float(found) == pytest.approx(expected, rel=1e-5)
    sure = Mixture(torch.tensor(labels)[:, None].clamp(min=0), torch.ones(4, 1))
    certain = loss(output_of(logits, logits), batch_of(labels, mixture=sure), STEP)
    torch.testing.assert_close(certain, loss(output_of(logits, logits), batch_of(labels), STEP))


@pytest.mark.parametrize("loss", [Triplet(0.3, "before", False, ["v"]), PairCircle(0.25, 16.0, "before", ["v"])])
def test_pairs_are_those_that_all_guesses_agree_about(loss):
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    groupings = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 1], [1, -1], [-1, 2], [-1, -1]])
    seen = []
    compare = loss.compare

    def spy(x, anchors, positive, negative):
        seen.append((anchors, positive, negative))
        return compare(x, anchors, positive, negative)

    loss.compare = spy
    loss(output_of(x, x), batch_of([0, 0, 0, 1, 1, 2, -1], groupings=groupings), STEP)
    anchors, positive, negative = seen[0]
    pairs = {True: set(), False: set(), None: set()}
    for i in range(7):
        for j in range(7):
            both = [(a, b) for a, b in zip(groupings[i].tolist(), groupings[j].tolist(), strict=True) if min(a, b) >= 0]
            votes = {a == b for a, b in both}
            if i != j:
                pairs[votes.pop() if len(votes) == 1 else None].add((i, j))
    rows = anchors.nonzero()[:, 0].tolist()
    assert rows == [i for i in range(7) if any(a == i for a, _ in pairs[True]) and any(a == i for a, _ in pairs[False])]
    for mask, answer in ((positive, True), (negative, False)):
        found = {(rows[a], b) for a, b in mask.nonzero().tolist()}
        assert found == {(a, b) for a, b in pairs[answer] if a in rows}
    assert (
        {(0, 1), (3, 4)} <= pairs[True] and (0, 2) in pairs[None] and (3, 5) in pairs[False] and (4, 5) in pairs[None]
    )


def test_one_guess_is_a_label():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    batch = batch_of([0, 0, 1, 1, -1, 2])
    loss = Triplet(0.3, "before", False, ["v"])
    guessed = evolve(batch, labels=torch.full((6,), -1), groupings=batch.labels[:, None])
    assert torch.equal(loss(output_of(x, x), guessed, STEP)["triplet"], loss(output_of(x, x), batch, STEP)["triplet"])


def test_a_run_that_ended_begins_no_other_round(make):
    first, again = make("run"), make("run")
    fit(first)
    fit(again, resume=True)
    assert again.task.asked == []
    assert again.step == first.step > 0
    assert torch.equal(states(again.average), states(first.average))


def test_a_stream_that_stays_keeps_its_loader(make):
    run = make("run")
    prepare(run)
    loader = run.loaders["source"]
    fit(run)
    assert run.loaders["source"] is loader


def test_nothing_can_be_held_out_of_no_labelled_images(make, toy_folder):
    alone = f"train=[{{name='folder', root='{toy_folder}', role='target'}}]"
    with pytest.raises(DataError, match=r"evaluation\.holdout keeps labelled training images out, and there are none"):
        make("run", alone, "evaluation.holdout=0.2")


def test_restoring_needs_no_round_before_it(make):
    stopped = make("run", stop=3)
    with pytest.raises(RunError, match="stopped"):
        fit(stopped)
    resumed = make("run")
    prepare(resumed, resume=True)
    assert checkpoints(resumed.folder)
    assert resumed.task.asked == [stopped.epoch]
    assert resumed.step == 3
