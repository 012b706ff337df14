"""Runs in several processes: what one process and two have in common, and how two end together.

Two processes that are started once train and evaluate all cases one after the other, and leave what came out in files.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from attrs import evolve, frozen
from torch import nn

from reidcore import Component, load_recipe, option
from reidcore.assemble import assemble, find_device, make_evaluator, read_data
from reidcore.builtin.modules.heads import ClassifierHead
from reidcore.catalog import Catalog
from reidcore.distributed import SyncBatchNorm, add, average_norms, joined, of_all, of_main, sum_gradients
from reidcore.errors import DataError, ReidError, RunError
from reidcore.features import KeptFeatures
from reidcore.loop import Losses, checkpoints, fit, prepare
from reidcore.retrieval.extract import extract_whole, share
from reidcore.testing import tiny_recipe
from reidcore.types import ALONE, Batch, MapShape, Needs, Output, Sample, Step, Stream, World


class Net(nn.Module):
    """One convolution, with a batch norm or without, in which case a batch's images do not see each other."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.shapes = {"last": MapShape(8, 7, 3)}

    def forward(self, images, want, cameras=None):
        return {"last": self.norm(self.conv(images)).relu()}

    def tail(self, after):
        return nn.Sequential()


@frozen(kw_only=True)
class NetConfig:
    """One convolution."""

    norm: bool = option(False, help="with a batch norm")

    def build(self, height, width):
        return Net(self.norm)


class Scaled(nn.Module):
    """A loss with a parameter; asks process 1 to stop after a step."""

    needs = Needs()

    def __init__(self, stop):
        super().__init__()
        self.stop = stop
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, batch, step):
        return {"scaled": (output.embedding.square().mean(1) * self.scale + (self.scale - 3).square()).mean()}

    def after_step(self, run):
        run.interrupted |= run.step == self.stop and run.world.rank == run.world.size - 1


@frozen(kw_only=True)
class ScaledConfig:
    """A loss with a parameter."""

    stop: int = option(-1, help="the step")

    def build(self, parts):
        return Scaled(self.stop)


class DropoutHead(ClassifierHead):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


@frozen(kw_only=True)
class DropoutConfig:
    """A linear head behind a dropout."""

    def build(self, dim, classes):
        return DropoutHead(dim, classes, neck=False)


CATALOG = Catalog.of(
    backbones=[Component(name="net", config=NetConfig)],
    losses=[Component(name="scaled", config=ScaledConfig)],
    heads=[Component(name="dropout", config=DropoutConfig)],
)
PLAIN = (
    *("backbone={name='net'}", "aggregator={name='avg', source='last'}", "head.name=linear"),
    *("optimizer={name='sgd', lr=0.1, weight_decay=0, momentum=0}", "scheduler={warmup=0, flat_until=1.0}"),
    "loss=[{name='cross-entropy'}, {name='triplet'}, {name='scaled', weight=0.1}]",
    "training.epochs=4",
)
CASES = {
    "plain": PLAIN,
    "everything": (
        *PLAIN,
        *("training.accumulate=2", "training.clip_norm=0.5", "training.ema=0.9", "optimizer.momentum=0.9"),
        *("training.freeze=['backbone']", "training.freeze_iterations=4"),
    ),
    "synchronised norms": (*PLAIN, "backbone.norm=true", "training.sync_batch_norm=true"),
    "norms of their own": (*PLAIN, "backbone.norm=true", "training.ema=0.9"),
}
EXACT = ["plain", "everything", "synchronised norms"]
CHANCE = (*PLAIN, "backbone.norm=true", "head.name=dropout", "training.ema=0.9", "training.accumulate=2")
IMAGES = [0, 1, 2, 5]


class Recorder:
    """A logger that keeps the events."""

    def __init__(self):
        self.events = []

    def log(self, event):
        self.events.append(dict(event))

    def close(self): ...


def make(recipe, folder, world, *overrides):
    """Return the assembled run of a recipe."""
    loaded = load_recipe(recipe, overrides=overrides, catalog=CATALOG)
    run = assemble(loaded, read_data(loaded), folder, lambda model, epoch: None, world)
    run.loggers = [Recorder()]
    return run


def train(run, resume=False):
    """Train a run; return what came out of it."""
    error = ""
    try:
        fit(run, resume)
    except ReidError as raised:
        error = str(raised)
    modules = [run.model, run.losses, *([run.average] if run.average else [])]
    state = {f"{number}.{name}": x for number, m in enumerate(modules) for name, x in m.state_dict().items()}
    steps = [event for event in run.loggers[0].events if event["kind"] == "step"]
    epochs = [event for event in run.loggers[0].events if event["kind"] == "epoch"]
    return {
        "losses": [event["losses"] for event in steps],
        "state": {name: x.clone() for name, x in state.items()},
        "chance": torch.rand(3),
        "images": [event["images_per_second"] * event["seconds"] for event in epochs],
        "error": error,
        "checkpoints": [file.name for file in checkpoints(run.folder)],
    }


def evaluate(recipe, folder, world):
    """Evaluate an untrained model; return the figures of all tests, and of those by features that were kept."""
    run = make(recipe, folder, world, *PLAIN)
    loaded = load_recipe(recipe, catalog=CATALOG, overrides=PLAIN)
    told = []
    evaluator = evolve(
        make_evaluator(loaded.recipe, folder, world),
        kept=KeptFeatures(folder / "features", "model"),
        progress=lambda *progress: told.append(progress),
    )
    tests = read_data(loaded).tests
    first = evaluator(run.model, tests)
    extracted = len(told)
    again = evaluator(run.model, tests)
    features = run.extract(run.model, tests[0].splits.gallery)
    return {
        "figures": [{label: dict(result) for label, result in found.items()} for found in (first, again)],
        "intervals": [{label: result.intervals for label, result in found.items()} for found in (first, again)],
        "told": [extracted, len(told) - extracted],
        "embeddings": features.embeddings,
        "paths": features.paths,
    }


class Means(nn.Module):
    """The mean of the image, with an extra in half precision."""

    def forward(self, images, want=(), cameras=None):
        means = images.float().mean((1, 2, 3))[:, None]
        return Output(means, {}, {}, {}, extras={"cells": means.half()[:, :, None].expand(-1, 1, 300)})


class Grey:
    """A picture of one shade."""

    def __init__(self, shade):
        self.shade, self.name = shade, f"grey {shade}"

    def open(self):
        from PIL import Image

        return Image.new("RGB", (4, 4), (self.shade,) * 3)


def extracted(count, world):
    """Return the features of a number of images, or None."""
    samples = [Sample(Grey(10 * number), number) for number in range(count)]
    options = {"size": (4, 4), "batch": 2, "workers": 0}
    found = extract_whole(Means(), samples, world=world, **options)
    return None if found is None else (found.embeddings, found.extras, found.identities)


LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 2])
SHARES = [slice(0, 5), slice(5, 7)]  # not equal, as whole identities make them


def network():
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def gathered(net, rows, world):
    """Return the part that some rows have of a loss over all of them, after its backward pass."""
    from reidcore.builtin.modules.pairs import Triplet

    x = net(torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(0))[rows])
    labels = LABELS[rows]
    batch = Batch(torch.zeros(len(x), 3, 1, 1), labels, labels, labels, share=len(labels) / len(LABELS))
    losses = Losses([(1.0, Triplet(2.0, "before", False, ["v"], gather=True))], world)
    loss = losses(Output(x, {"v": x}, {"v": x}, {}), batch, Step(number=0, epoch=0))["triplet"]
    loss.backward()
    return loss.detach()


def normalised(norm, rows):
    """Return what a norm makes of some rows of a batch, its gradients of a loss that is no mean, and its statistics."""
    random = torch.Generator().manual_seed(2)
    x = (3 + 2 * torch.randn(7, 3, 4, 2, generator=random).double())[rows].requires_grad_()
    factors = torch.randn(7, 3, 4, 2, generator=random)[rows]
    y = norm(x)
    (y.square() * factors).sum().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "state": norm.state_dict(),
    }


def norm_of(kind, world=None):
    norm = kind(3).double()
    norm.load_state_dict(norm.state_dict() | {"weight": torch.tensor([1.0, 2.0, 3.0]), "bias": torch.arange(3.0)})
    if world:
        norm.world = world
    return norm


def communicate(world):
    """Return what the small functions do."""
    given = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    given[0].grad = torch.full((2,), float(world.rank + 1))
    if world.rank == 1:
        given[1].grad = torch.ones(2)
    sum_gradients(given, world)
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(world.rank)
    norm.running_var.fill_(0.1)
    average_norms([norm], world)
    return {
        "gradients": [parameter.grad for parameter in given],
        "norm": [norm.running_mean, norm.running_var],
        "sum": add([1, world.rank], world),
        "main": of_main({"rank": world.rank}, world),
        "all": of_all(world.rank, world),
    }


def cases(recipe, folder, world):
    """Yield the name of each case with what came out."""
    for name, overrides in CASES.items():
        yield name, train(make(recipe, folder / name, world, *overrides))
    yield "evaluation", evaluate(recipe, folder / "evaluation", world)
    yield "features", [extracted(count, world) for count in IMAGES]


def cases_of_two(recipe, folder, world):
    """Yield what needs no reference of one process, or another one."""
    yield "whole", train(make(recipe, folder / "whole", world, *CHANCE))
    stop = "loss.2.stop=5"
    yield "stopped", train(make(recipe, folder / "stopped", world, *CHANCE, stop))
    yield "resumed", train(make(recipe, folder / "stopped", world, *CHANCE), resume=True)

    def relabel(epoch, run):  # what a task may do before each epoch
        run.resize(run.classes)
        return {"train": Stream(run.train.samples, run.train.labels)}

    run = make(recipe, folder / "resized", world, *PLAIN, "training.ema=0.9")
    run.task.round = relabel
    yield "resized", train(run)
    run = make(recipe, folder / "apart", world, *PLAIN)
    run.task.round = lambda epoch, run: {"train": Stream(run.train.samples, (run.train.labels + world.rank) % 6)}
    yield "apart", train(run)
    net = network()
    part = gathered(net, SHARES[world.rank], world)
    yield "gathered", {"part": part, "gradient": net.weight.grad}
    yield "norm", normalised(norm_of(SyncBatchNorm, world), SHARES[world.rank])
    yield "communication", communicate(world)
    try:
        prepare(make(recipe, folder / "few", world, "sampler.identities=1", "sampler.instances=4"))
    except DataError as error:
        yield "few", str(error)


def work(rank, recipe, folder, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined() as world:
        with joined() as again:
            assert again == world == World(rank, 2, rank)
        for each in (cases, cases_of_two):
            for name, found in each(recipe, folder / "two", world):
                torch.save(found, folder / f"{name}-{rank}.pt")
    assert not dist.is_initialized()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return `{case: what came out, of one process, of the first of two, of the second}`."""
    folder = tmp_path_factory.mktemp("distributed")
    recipe = tiny_recipe(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = mp.spawn(work, (recipe, folder, port), nprocs=2, join=False)
    alone = dict(cases(recipe, folder / "one", ALONE))
    while not both.join():
        pass
    names = {file.name.rpartition("-")[0] for file in folder.glob("*-0.pt")}
    return {
        name: [alone.get(name), *(torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2))]
        for name in names
    }


@pytest.mark.parametrize("case", EXACT)
def test_one_process_and_two_have_the_same_losses(case, found):
    one, first, _ = found[case]
    assert len(one["losses"]) >= (12 if case == "everything" else 20)
    assert one["losses"][-1] != one["losses"][0]
    for mine, theirs in zip(one["losses"], first["losses"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("case", EXACT)
def test_one_process_and_two_have_the_same_weights_those_of_losses_and_of_thawed_modules_too(case, found):
    one, first, _ = found[case]
    assert one["state"]["1.terms.2.scale"] != 1
    torch.testing.assert_close(first["state"], one["state"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", [*CASES, "whole", "resized"])
def test_all_processes_have_the_same_weights_and_statistics_in_the_end(case, found):
    _, first, second = found[case]
    assert not first["error"]
    for name, tensor in first["state"].items():
        assert torch.equal(second["state"][name], tensor), name


def test_one_process_logs_the_images_of_all(found):
    one, first, second = found["plain"]
    assert first["images"] == pytest.approx(one["images"])
    assert not second["losses"]


def test_chance_is_another_in_each_process(found):
    _, first, second = found["whole"]
    assert not torch.equal(first["chance"], second["chance"])


def test_what_one_process_hears_stops_all_and_resumes_to_the_same_weights_bit_for_bit(found):
    for whole, stopped, resumed in zip(*(found[case][1:] for case in ("whole", "stopped", "resumed")), strict=True):
        assert stopped["error"] == "stopped at step 5; go on with --resume"
        assert stopped["checkpoints"][-1] == "step-000000005.safetensors"
        assert torch.equal(resumed["chance"], whole["chance"])
        for name, tensor in whole["state"].items():
            assert torch.equal(resumed["state"][name], tensor), name


def test_labels_that_differ_between_processes_are_refused(found):
    for each in found["apart"][1:]:
        assert each["error"].startswith("the processes made different labels for epoch 1")


def test_a_sampler_with_fewer_identities_than_processes_is_refused_before_the_training(found):
    for each in found["few"][1:]:
        assert each.startswith("a batch of 1 identities cannot be split over 2 processes")


def test_a_loss_that_gathers_has_the_value_and_the_gradient_of_the_whole_batch(found):
    net = network()
    expected = gathered(net, slice(None), ALONE)
    _, first, second = found["gathered"]
    torch.testing.assert_close(first["part"] + second["part"], expected)
    torch.testing.assert_close(first["gradient"] + second["gradient"], net.weight.grad)


def test_a_synchronised_norm_is_torchs_norm_of_the_whole_batch(found):
    expected = normalised(norm_of(nn.BatchNorm2d), slice(None))
    _, first, second = found["norm"]
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), expected[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close(first[name] + second[name], expected[name])
    for each in (first, second):
        torch.testing.assert_close(dict(each["state"]), dict(expected["state"]))


def test_gradients_and_statistics_and_words_are_exchanged(found):
    for rank, each in enumerate(found["communication"][1:]):
        assert [None if x is None else x.tolist() for x in each["gradients"]] == [[3, 3], [1, 1], None]
        assert each["norm"][0].tolist() == [0.5, 0.5]
        assert torch.equal(each["norm"][1], torch.tensor([0.1, 0.1]))  # what is equal does not change by rounding
        assert (each["sum"], each["main"], each["all"]) == ([2, 1], {"rank": 0}, [0, 1]), rank


def test_all_processes_have_the_figures_of_one(found):
    one, first, second = found["evaluation"]
    assert one["figures"][0]["folder"]["mAP"] > 0
    for each in (first, second):
        assert each["figures"] == one["figures"]
        assert each["intervals"] == one["intervals"]
        np.testing.assert_allclose(each["embeddings"], one["embeddings"], rtol=1e-6)
        assert each["paths"] == one["paths"]


def test_features_that_are_kept_are_made_again_by_no_process(found):
    for rank, each in enumerate(found["evaluation"][1:]):
        first, again = each["told"]
        ranking = 1 if rank == 0 else 0
        assert first > ranking
        assert again == ranking


@pytest.mark.parametrize("place", range(len(IMAGES)))
def test_features_are_merged_in_order(place, found):
    one, first, second = (each[place] for each in found["features"])
    assert second is None
    for mine, theirs in zip(one, first, strict=True):
        np.testing.assert_equal(theirs, mine)
    assert len(first[0]) == IMAGES[place]


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (7, 3), (8, 2)])
def test_shares_are_all_images_and_the_main_process_has_one_if_any_has(count, size):
    shares = [range(*share(count, World(rank, size))) for rank in range(size)]
    assert [number for each in shares for number in each] == list(range(count))
    assert len(shares[0]) == max(map(len, shares))


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device("auto", World(rank + 2, 4, rank)) for rank in range(2)] == [
        torch.device("cuda:0"),
        torch.device("cuda:1"),
    ]
    with pytest.raises(RunError, match="more than 2 processes on this machine"):
        find_device("cuda", World(2, 3, 2))
    with pytest.raises(RunError, match="every process has a GPU of its own"):
        find_device("cuda:1", World(0, 2, 0))
    assert find_device("cpu", World(0, 2, 0)) == torch.device("cpu")


KILLER = '''
"""A loss that kills process 1 of a run that was not started anew."""

import os
import signal

from attrs import frozen
from torch import nn
from reidcore import Component, hookimpl, option
from reidcore.types import Needs


class Killer(nn.Module):
    needs = Needs()

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, output, batch, step):
        first = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if step.number == self.step and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


@frozen(kw_only=True)
class KillerConfig:
    """Kill process 1."""

    step: int = option(-1, help="in this step")

    def build(self, parts):
        return Killer(self.step)


@hookimpl
def reidcore_losses():
    yield Component(name="killer", config=KillerConfig)
'''
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = ["--processes", "2"]


@pytest.fixture
def start(toy_recipe, write):
    """Return a function that starts a run of the toy recipe in processes of its own."""
    plugin = write("killer.py", KILLER)

    def start_run(name, *overrides, launcher=(sys.executable,), more=TWO):
        sets = [word for item in (f"run.name={name}", "input.workers=0", *overrides) for word in ("--set", item)]
        command = [*launcher, "-m", "reidcore", "run", toy_recipe, "--plugin", plugin, *sets, *more]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start_run


@pytest.fixture
def run(start):
    """Return a function that runs the toy recipe so to its end: exit status, standard output, standard error."""

    def run_to_its_end(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run_to_its_end


def log(toy_recipe, name):
    """Return the events of a run."""
    file = toy_recipe.parent / "runs" / name / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_processes_write_one_run_folder_and_print_once(run, reidcore, toy_recipe):
    status, out, err = run("two", "training.sync_batch_norm=true", "training.epochs=1", "evaluation.every=1")
    assert status == 0, err
    assert reidcore("run", toy_recipe, "-q", "--set", "training.epochs=1", "--set", "run.name=one")[0] == 0
    runs = toy_recipe.parent / "runs"
    names = [{file.name for file in (runs / name).iterdir()} for name in ("one", "two")]
    assert names[0] - {"features"} == names[1]  # those of an evaluation during the training are not kept
    assert out.count("6 of 6") == err.count("6 of 6 queries") == err.count("in 2 processes") == 1
    steps = [[event for event in log(toy_recipe, name) if event["kind"] == "step"] for name in ("one", "two")]
    assert [event["step"] for event in steps[1]] == [1, 2, 3, 4, 5, 6]
    assert steps[1][0]["loss"] == pytest.approx(steps[0][0]["loss"], abs=1e-4)
    assert log(toy_recipe, "two")[0]["processes"] == 2


def test_an_error_of_one_process_ends_all_with_one_message_and_a_checkpoint(run, toy_recipe, toy_folder):
    broken = sorted((toy_folder / "train").glob("0005*"))
    for file in broken:
        file.write_text("no image")
    status, out, err = run("bad", "training.epochs=1", more=[*TWO, "-q"])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("cannot read the image")
    step = max([event["step"] for event in log(toy_recipe, "bad") if event["kind"] == "step"], default=0)
    assert (toy_recipe.parent / "runs" / "bad" / "checkpoints" / f"step-{step:09d}.safetensors").exists()


@pytest.mark.parametrize("count", ["0", "-1"])
def test_a_number_of_processes_below_one_is_refused(count, toy_recipe, reidcore):
    status, _, err = reidcore("run", toy_recipe, f"--processes={count}")
    assert (status, err) == (2, f"--processes: found {count}; expected at least 1\n")


def test_another_number_than_torchruns_is_refused(toy_recipe, reidcore, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    status, _, err = reidcore("run", toy_recipe, "--processes=3")
    assert (status, err) == (2, "--processes: found 3, but there are 1 by torchrun; leave it out\n")


def test_an_environment_that_says_half_is_an_error(toy_recipe, reidcore, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = reidcore("run", toy_recipe)
    assert status == 2
    assert err.startswith("WORLD_SIZE is 2, but there are no others to be found")
    assert "RANK" in err


@pytest.mark.slow
def test_torchrun_starts_a_run_anew_that_goes_on_by_itself(run, toy_recipe):
    torchrun = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "1"]
    options = {"launcher": torchrun, "more": ["-q"]}
    loss = "loss=[{{name='cross-entropy'}}, {{name='triplet'}}, {{name='killer', step={}}}]"
    assert run("whole", loss.format(-1), **options)[0] == 0
    status, _, err = run("killed", loss.format(8), **options)
    assert status == 0, err
    weights = [(toy_recipe.parent / "runs" / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert [event["step"] for event in log(toy_recipe, "killed") if event["kind"] == "resume"] == [6]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_one_message(run):
    status, out, err = run("killed", "loss=[{name='cross-entropy'}, {name='killer', step=2}]", more=[*TWO, "-q"])
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.endswith("go on with --resume\n")


@pytest.mark.slow
def test_ctrl_c_is_heard_by_all_and_said_once(start, toy_recipe):
    process = start("stopped", "training.epochs=1000", more=[*TWO, "-q"])
    while not any(event["kind"] == "step" for event in log(toy_recipe, "stopped")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    step = max(event["step"] for event in log(toy_recipe, "stopped") if event["kind"] == "step")
    assert err == f"stopped at step {step}; go on with --resume\n"
    assert (toy_recipe.parent / "runs" / "stopped" / "checkpoints" / f"step-{step:09d}.safetensors").exists()
