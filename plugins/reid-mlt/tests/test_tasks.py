"""Both tasks on toy data: what they know, learn and survive, and that they go on where they stopped."""

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import nn
from torch.nn import functional as F

from reid_mlt.clustering import Clustering, compact
from reid_mlt.relabelling import Adapting, centres, without_cameras
from reid_mlt.tasks import KEPT, Granularity
from reid_mlt.transport import sinkhorn
from reidcore.assemble import assemble, read_data
from reidcore.errors import ContractError, RunError
from reidcore.loop import fit, prepare
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli, tiny_recipe
from reidcore.types import UNKNOWN, Step

MLT = "task={name='mlt', clustering='kmeans', clusters=[3, 5, 8], every=2}"
PLAIN = "task={name='cluster-and-train', clustering='kmeans', clusters=5, every=2}"
LOSSES = "loss=[{name='cross-entropy'}, {name='triplet', soft=true}, {name='pair-circle'}]"


class Recorder:
    """A logger that keeps the events, and interrupts the run after a step."""

    def __init__(self, run, stop):
        self.run, self.stop, self.events = run, stop, []

    def log(self, event):
        self.events.append(event)
        self.run.interrupted |= event["kind"] == "step" and event["step"] == self.stop

    def close(self): ...

    def rounds(self):
        return [event for event in self.events if event["kind"] == "round"]


@pytest.fixture
def make(tmp_path):
    """Return a function that assembles a run with the toy data as source and as target."""
    recipe = tiny_recipe(tmp_path)
    sets = [f"{{name='folder', root='{tmp_path / 'toy'}'{role}}}" for role in ("", ", role='target'")]
    numbers = iter(range(100))

    def make_run(*overrides, folder=None, stop=0, data=lambda data: data):
        fixed = (f"train=[{', '.join(sets)}]", "training.epochs=4", "training.ema=0.9", LOSSES)
        loaded = load_recipe(recipe, overrides=(*fixed, *overrides))
        place = tmp_path / (folder or f"run{next(numbers)}")
        run = assemble(loaded, data(read_data(loaded)), place, lambda model, epoch: None)
        run.loggers = [Recorder(run, stop)]
        return run

    return make_run


def values(module):
    """Return all that a module holds as one vector."""
    return torch.cat([value.double().flatten() for value in module.state_dict().values()])


HDBSCAN = "task={name='mlt', smallest=[3, 4], k1=5, k2=2, min_samples=2, every=1}"


@pytest.mark.parametrize("task", [MLT, PLAIN, HDBSCAN])
def test_the_targets_labels_change_nothing(make, task):
    def shuffled(data):
        order = np.random.default_rng(0).permutation(len(data.targets))
        identities = [data.targets[place].identity for place in order]
        relabelled = [evolve(s, identity=i) for s, i in zip(data.targets, identities, strict=True)]
        assert [s.identity for s in relabelled] != [s.identity for s in data.targets]
        return evolve(data, targets=tuple(relabelled))

    def unlabelled(data):
        return evolve(data, targets=tuple(evolve(sample, identity=UNKNOWN) for sample in data.targets))

    known = make(task)
    expected = values(fit(known))
    assert not known.average.training  # or it would have statistics of the batches that it is shown
    for change in (shuffled, unlabelled):
        run = make(task, data=change)
        assert torch.equal(values(fit(run)), expected)
    # what is reported alone knows them
    assert known.loggers[0].rounds()[0]["ami"] > 0.5
    assert "ami" not in run.loggers[0].rounds()[0]


def test_one_granularity_with_hard_labels_is_cluster_and_train(make):
    one = "task={name='mlt', clustering='kmeans', clusters=[5], every=2, cluster_share=1, transport_share=0, "
    mixed, plain = make(one + "source_weight=0}"), make(PLAIN)
    fit(mixed)
    fit(plain)
    torch.testing.assert_close(mixed.task.heads[0].labels.numpy(), plain.task.labels)
    torch.testing.assert_close(mixed.task.heads[0].rows, plain.model.heads["global"].classifier.weight)
    ours, theirs = mixed.average.state_dict(), plain.average.state_dict()
    for name in ours.keys() - {"heads.global.classifier.weight"}:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    assert mixed.step == plain.step > 8


def test_granularities_that_are_alike_are_one(make):
    fixed = "every=2, source_weight=0}"
    one = make("task={name='mlt', clustering='kmeans', clusters=[5], " + fixed)
    three = make("task={name='mlt', clustering='kmeans', clusters=[5, 5, 5], " + fixed)
    torch.testing.assert_close(values(fit(one)), values(fit(three)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [MLT, PLAIN, MLT.replace("every=2", "every=1")], ids=["mlt", "plain", "every epoch"])
def test_a_resumed_run_ends_in_the_same_state(make, task, monkeypatch):
    original = Clustering.__call__

    def growing(self, x, seed, *more):
        return original(evolve(self, sizes=[size + seed % 4 for size in self.sizes]), x, seed, *more)

    monkeypatch.setattr(Clustering, "__call__", growing)
    whole = make(task, "sampler.identities=2")
    fit(whole)
    changes = {tuple(event["clusters"]) for event in whole.loggers[0].rounds()}
    assert len(changes) > 1
    ends = [event["step"] for event in whole.loggers[0].events if event["kind"] == "epoch"]
    for stop in (1, ends[1], ends[1] + 1):
        stopped = make(task, "sampler.identities=2", folder=f"stop{stop}", stop=stop)
        with pytest.raises(RunError, match=f"stopped at step {stop};"):
            fit(stopped)
        resumed = make(task, "sampler.identities=2", folder=f"stop{stop}")
        assert torch.equal(values(fit(resumed, resume=True)), values(whole.average))
        if isinstance(whole.task, nn.Module):
            assert torch.equal(values(resumed.task), values(whole.task))
        else:
            assert (resumed.task.labels == whole.task.labels).all()
        said = {event["epoch"]: event["text"] for event in stopped.loggers[0].rounds()}
        said |= {event["epoch"]: event["text"] for event in resumed.loggers[0].rounds()}
        assert list(said.values()) == [event["text"] for event in whole.loggers[0].rounds()]


@pytest.mark.parametrize("task", [MLT, PLAIN])
def test_a_run_whose_images_changed_is_not_resumed(make, task, tmp_path):
    with pytest.raises(RunError, match="stopped"):
        fit(make(task, folder="run", stop=1))
    next((tmp_path / "toy" / "train").iterdir()).unlink()
    with pytest.raises(RunError, match="the target's images are not those that the run began with"):
        fit(make(task, folder="run"), resume=True)


def test_a_finished_run_is_not_labelled_again(make):
    whole = make(PLAIN, folder="run")
    fit(whole)
    again = make(PLAIN, folder="run")
    assert torch.equal(values(fit(again, resume=True)), values(whole.average))
    assert not again.loggers[0].rounds()


def test_empty_clusters_are_reported(make, monkeypatch):
    monkeypatch.setattr("reid_mlt.clustering._kmeans", lambda x, clusters, seed: np.arange(len(x)) % (clusters - 1))
    for task, text in ((MLT, "; 3 clusters were empty"), (PLAIN, "; 1 clusters were empty")):
        run = make(task, "training.epochs=1")
        fit(run)
        assert run.loggers[0].rounds()[0]["text"].endswith(text)


def test_a_round_is_a_line(make):
    run = make(MLT)
    fit(run)
    first, refined, second, _ = run.loggers[0].rounds()
    assert first["clusters"] == [3, 5, 8]
    assert first["changed"] is None
    assert 0 <= refined["changed"] <= 1
    text = f"labels of epoch 3: 3, 5, 8 clusters, 0.0% outliers, {second['changed']:.1%} changed"
    text += f", agreement {second['agreement']:.2f} (in truth: AMI {second['ami']:.2f}, purity {second['purity']:.2f})"
    assert second["text"] == text
    assert json.loads(json.dumps(second)) == second


def test_the_source_has_norms_of_its_own(make):
    run = make(MLT)
    prepare(run)
    names, norms = run.task.norm_names, run.task.norms
    own = {name: copy.deepcopy(run.model.get_submodule(name).state_dict()) for name in names}
    batches = {name: next(iter(loader.batches(0))) for name, loader in run.loaders.items()}
    run.task._of_source(batches["source"])
    for name, norm in zip(names, norms, strict=True):
        for key, value in run.model.get_submodule(name).state_dict().items():
            assert torch.equal(value, own[name][key])
        assert norm.num_batches_tracked == own[name]["num_batches_tracked"] + 1
        assert not torch.equal(norm.running_mean, own[name]["running_mean"])
    # the output is that of the model with these norms
    other = copy.deepcopy(run.model)
    for name, norm in zip(names, norms, strict=True):
        other.get_submodule(name).load_state_dict(norm.state_dict())
    torch.testing.assert_close(
        run.task._of_source(batches["source"]).embedding, other(batches["source"].images).embedding
    )
    losses = run.task.losses(batches, Step(0, 0))
    of_one = {"cross-entropy", "triplet", "pair-circle"}
    assert set(losses) == of_one | {f"source-{name}" for name in of_one}
    torch.stack(list(losses.values())).sum().backward()
    assert all(norm.weight.grad is not None for norm in norms)
    assert norms[0].weight.grad.abs().sum() > 0
    assert all(granularity.rows.grad.abs().sum() > 0 for granularity in run.task.heads)
    learned = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in run.task.parameters() if parameter.requires_grad} <= learned


def test_the_source_may_share_the_norms_or_be_left_out(make):
    shared = make(MLT.replace("every=2", "every=2, domain_norm=false"))
    fit(shared)
    assert len(shared.task.norms) == 0
    alone = make(MLT.replace("every=2", "every=2, source_weight=0"))
    fit(alone)
    assert list(alone.loaders) == ["target"]
    assert set(shared.loaders) == {"target", "source"}


def test_target_images_alone_are_enough(make, tmp_path):
    alone = f"train=[{{name='folder', root='{tmp_path / 'toy'}', role='target'}}]"
    for task in (MLT, PLAIN):
        run = make(task, alone)
        fit(run)
        assert list(run.loaders) == ["target"]


def grouped(*sizes):
    """Return (N, 8) features of length 1 in groups of these sizes, and the groups."""
    random = np.random.default_rng(4)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    x = 3 * np.eye(8)[labels] + random.normal(size=(len(labels), 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("uniform", [0.0, 0.4, 1.0])
def test_labels_are_mixed_as_written(uniform):
    x, labels = grouped(8, 4, 6)
    clusters = torch.from_numpy(np.where(np.arange(18) % 5 == 0, UNKNOWN, labels))
    rows = torch.from_numpy(centres(x, clusters.numpy(), [8]))
    granularity = Granularity(rows, clusters)
    granularity.averaged.mul_(3.0)  # only directions count
    options = {"sharpness": 6.0, "uniform": uniform, "cluster_share": 0.3, "transport_share": 0.5}
    granularity.refine(torch.from_numpy(x), **options)
    known = [i for i in range(18) if clusters[i] >= 0]
    cosines = torch.tensor(
        [[float(F.cosine_similarity(torch.from_numpy(x[i]), row, dim=0)) for row in rows] for i in known]
    )
    sizes = torch.tensor([sum(int(clusters[i]) == k for i in known) for k in range(3)]) / len(known)
    plan = sinkhorn(cosines, uniform / 3 + (1 - uniform) * sizes, sharpness=6.0).shares
    for place, i in enumerate(known):
        for k in range(3):
            softmax = math.exp(6 * cosines[place, k]) / sum(math.exp(6 * cosine) for cosine in cosines[place])
            share = 0.3 * (clusters[i] == k) + 0.5 * plan[place, k] + 0.2 * softmax
            found = granularity.shares[i][granularity.classes[i] == k].sum()
            assert float(found) == pytest.approx(float(share), abs=1e-5)
        assert granularity.labels[i] == granularity.classes[i, 0]
        assert granularity.shares[i].sum() == pytest.approx(1.0, abs=1e-5)
        assert (granularity.shares[i].diff() <= 0).all()
    for i in set(range(18)) - set(known):
        assert granularity.labels[i] == UNKNOWN
        assert granularity.shares[i].sum() == 0


def test_only_the_largest_shares_are_kept():
    random = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(3 * KEPT, 8, generator=random))
    x = F.normalize(torch.randn(200, 8, generator=random))
    granularity = Granularity(rows, torch.arange(200) % len(rows))
    options = {"sharpness": 2.0, "uniform": 1.0, "cluster_share": 0.0, "transport_share": 0.0}
    granularity.refine(x, **options)
    expected = (2 * x @ rows.T).softmax(1).topk(KEPT, 1)
    assert torch.equal(granularity.classes, expected.indices)
    torch.testing.assert_close(granularity.shares, expected.values / expected.values.sum(1, keepdim=True))


def test_transport_mends_clusters_of_equal_identities():
    # 6 identities of 20 images; k-means has put some of one to the next
    random = np.random.default_rng(0)
    true = np.repeat(np.arange(6), 20)
    x = np.eye(16)[true] + 0.28 * random.normal(size=(120, 16))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    found = true.copy()
    found[random.choice(120, 30, replace=False)] = random.integers(0, 6, 30)
    granularity = Granularity(torch.from_numpy(centres(x, found, [16])), torch.from_numpy(found))
    options = {"sharpness": 25.0, "uniform": 1.0, "cluster_share": 0.0, "transport_share": 1.0}
    granularity.refine(torch.from_numpy(x), **options)
    assert (granularity.labels.numpy() == true).mean() > 0.97 > (found == true).mean()


@pytest.mark.parametrize("name", ["mlt", "cluster-and-train"])
def test_a_collapse_is_reported_and_survived(make, monkeypatch, name):
    run = make(MLT if name == "mlt" else PLAIN)
    original, calls = Clustering.__call__, []

    def collapsing(self, x, seed, *more):
        calls.append(seed)
        found = original(self, x, seed, *more)
        return found if len(calls) == 1 else [np.zeros_like(labels) for labels in found]

    monkeypatch.setattr(Clustering, "__call__", collapsing)
    fit(run)
    assert len(calls) == 2
    rounds = run.loggers[0].rounds()
    assert "since of the new ones they collapsed into one cluster" in rounds[2 if name == "mlt" else 1]["text"]
    assert rounds[-1]["clusters"] == rounds[0]["clusters"]


def test_a_granularity_that_collapses_is_left_out(make, monkeypatch):
    original = Clustering.__call__

    def collapsing(self, x, seed, *more):
        first, *others = original(self, x, seed, *more)
        return [np.full_like(first, UNKNOWN), *others]

    monkeypatch.setattr(Clustering, "__call__", collapsing)
    run = make(MLT)
    fit(run)
    text = run.loggers[0].rounds()[0]["text"]
    assert "5, 8 clusters" in text
    assert "1 of 3 granularities left out: no image is in a cluster" in text


@pytest.mark.parametrize("name", ["mlt", "cluster-and-train"])
def test_no_clusters_to_begin_with_are_an_error_that_helps(make, name):
    radii = "radii=[0.001]" if name == "mlt" else "radius=0.001"
    run = make(f"task={{name='{name}', clustering='dbscan', {radii}, min_samples=20}}")
    with pytest.raises(
        RunError, match=r"no clusters to begin with \(dbscan with 0\.001\): no image is in a cluster; ch"
    ):
        fit(run)


def test_fewer_clusters_than_a_batch_takes_are_no_clusters(make):
    run = make(PLAIN.replace("clusters=5", "clusters=2"))  # a batch takes 3 identities
    with pytest.raises(RunError, match=r"to begin with .* sampler"):
        fit(run)


def test_refined_labels_that_are_too_few_are_not_sampled_by(make, monkeypatch):
    original = Granularity.refine

    def merging(self, x, **options):
        error = original(self, x, **options)
        self.labels.zero_()
        return error

    monkeypatch.setattr(Granularity, "refine", merging)
    run = make(MLT)
    fit(run)
    assert run.step > 0
    assert "sampled by its clusters, since of refined labels they collapsed" in run.loggers[0].rounds()[0]["text"]


def test_a_coarse_granularity_may_have_fewer_clusters_than_a_batch_takes(make):
    run = make(MLT.replace("[3, 5, 8]", "[2, 5, 8]"))  # a batch takes 3 identities
    fit(run)
    assert run.loggers[0].rounds()[0]["clusters"] == [2, 5, 8]


def test_a_last_batch_of_one_image_does_not_stop_the_norms(make):
    fit(make(MLT, "evaluation.batch=35", "training.epochs=1"))  # there are 36 images


def test_factors_of_the_head_are_those_of_the_clusters_rows_too(make):
    run = make(MLT, "optimizer.lr_factors={head=10.0}")
    prepare(run)
    rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    assert rates[id(run.task.heads[0].rows)] == 10 * rates[id(run.model.backbone.conv1.weight)]


def test_outliers_are_not_trained_on(make, monkeypatch):
    original = Clustering.__call__

    def with_outliers(self, x, seed, *more):
        found = original(self, x, seed, *more)
        return [compact(np.where(np.arange(len(labels)) % 4, labels, UNKNOWN)) for labels in found]

    monkeypatch.setattr(Clustering, "__call__", with_outliers)
    for task in (MLT, PLAIN):
        run = make(task)
        seen = set()
        losses = run.task.losses

        def spy(batches, step, losses=losses, seen=seen):
            seen.update(batches["target"].indices.tolist())
            return losses(batches, step)

        run.task.losses = spy
        fit(run)
        assert seen == {place for place in range(36) if place % 4}
        assert run.loggers[0].rounds()[0]["outliers"] == pytest.approx(9 / 36)


def test_other_heads_and_views_learn_too(make):
    for options in (
        ("head.classifier='cosine'", "loss=[{name='circle'}, {name='triplet', soft=true}]"),
        ("aggregator.name='mgn'", "loss=[{name='cross-entropy'}, {name='triplet', soft=true, on=['b1', 'b2']}]"),
    ):
        for task in (MLT, PLAIN):
            run = make(task, *options, "training.epochs=1", "input.height=64", "input.width=32")
            before = {name: value.clone() for name, value in run.model.backbone.state_dict().items()}
            fit(run)
            assert any(not torch.equal(value, before[name]) for name, value in run.model.backbone.state_dict().items())


def test_losses_that_remember_classes_are_refused(make):
    for task in (MLT, PLAIN):
        run = make(task, "loss=[{name='cross-entropy'}, {name='center'}]")
        with pytest.raises(ContractError, match=r"loss\.1: it depends on what each class is, and clusters are others"):
            fit(run)


def test_adapted_norms_are_not_synchronised_ones(make):
    for task in (MLT, PLAIN):
        run = make(task, "training.sync_batch_norm=true")
        with pytest.raises(
            ContractError, match=r"adapts norm layers in each process by itself; write adapt_norm = false"
        ):
            fit(run)


@pytest.mark.slow
def test_two_processes_have_the_labels_and_losses_of_one(tmp_path):
    recipe = tiny_recipe(tmp_path)
    sets = ", ".join(f"{{name='folder', root='{tmp_path / 'toy'}'{role}}}" for role in ("", ", role='target'"))
    overrides = (
        *(f"train=[{sets}]", "loss=[{name='cross-entropy'}, {name='triplet', soft=true}]", "training.ema=0.9"),
        *(MLT.replace("every=2", "every=1, adapt_norm=false"), "training.sync_batch_norm=true"),
        "optimizer={name='sgd', lr=0.001}",
    )
    found = []
    for count in (1, 2):
        options = [word for item in (*overrides, f"run.name=run{count}") for word in ("--set", item)]
        command = [sys.executable, "-m", "reidcore", "run", str(recipe), *options, "-q", "--processes", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "runs" / f"run{count}" / "log.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    rounds, steps = ([[e for e in log if e["kind"] == kind] for log in found] for kind in ("round", "step"))
    assert len(rounds[0]) == len(rounds[1]) == 2
    assert rounds[0][0]["text"] == rounds[1][0]["text"]
    for one, two in zip(*steps, strict=True):
        if one["epoch"] == 1:  # then clusters are made by networks that differ by rounding
            assert two["losses"] == pytest.approx(one["losses"], abs=1e-3)


@pytest.mark.parametrize("name", ["mlt", "cluster-and-train"])
def test_a_run_without_a_target_is_an_error(tmp_path, name):
    done = run_cli("run", tiny_recipe(tmp_path), "--set", f"task.name={name}")
    assert done.status == 2
    assert f'the task "{name}" learns from images without labels; write role = "target" in their [[train]]' in done.err
    assert not (tmp_path / "runs").exists()


def test_options_that_contradict_each_other_are_refused(tmp_path):
    for name, option, message in (
        ("mlt", "clustering='kmeans'", "clusters: found none; clustering = 'kmeans' needs one for each granularity"),
        ("cluster-and-train", "clustering='kmeans'", "clusters: found none; clustering = 'kmeans' needs their number"),
        ("mlt", "cluster_share=0.6", "cluster_share and transport_share: found 0.6 and 0.5, which are more than 1"),
        ("mlt", "clusters=[1]", "task.clusters: found 1; expected at least 2"),
    ):
        done = run_cli("check", tiny_recipe(tmp_path), "--set", f"task={{name='{name}', {option}}}")
        assert done.status == 2
        assert message in done.err


def test_norms_take_the_targets_statistics_for_the_first_clusters_only(make, monkeypatch):
    run = make(MLT, "training.epochs=3")
    before = copy.deepcopy(run.model.state_dict())
    seen = []
    extract = run.extract
    run.extract = lambda model, samples: (seen.append(copy.deepcopy(model)), extract(model, samples))[1]
    prepare(run)
    assert len(seen) == 2
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    images = torch.cat([batch.images for batch in run.loaders["target"].batches(0)])
    stem = nn.Sequential(run.model.normalize, run.model.backbone.conv1)
    used = seen[1].model.backbone.bn1
    assert not torch.allclose(used.running_mean, before["backbone.bn1.running_mean"], atol=1e-3)
    torch.testing.assert_close(used.running_mean, stem(images).mean((0, 2, 3)), rtol=0.2, atol=0.2)
    fit(run)
    assert len(seen) == 2 + 2  # once before each other epoch
    assert not any(isinstance(model, Adapting) for model in seen[2:])


def test_features_are_compared_without_their_cameras():
    random = np.random.default_rng(0)
    cameras = np.repeat([0, 1, 2], [30, 20, 5])
    offset = random.normal(size=(3, 4))[cameras]
    x = (random.normal(size=(55, 4)) + 5 * offset).astype(np.float32)
    found = without_cameras(x, cameras)
    for camera in (0, 1):
        np.testing.assert_allclose(found[cameras == camera].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found[cameras == 2], (x - x.mean(0))[cameras == 2], atol=1e-5)  # too few
    np.testing.assert_allclose(np.diff(found[:30], axis=0), np.diff(x[:30], axis=0), atol=1e-5)


def test_centres_by_hand():
    x = np.array([[3, 4, 1, 0], [3, -4, 0, 1], [0, 5, 1, 0], [9, 9, 9, 9]], np.float32)
    found = centres(x, np.array([1, 1, 0, UNKNOWN]), [2, 2])
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[0, 1, 1, 0], [1, 0, half, half]], atol=1e-6)
