"""Checkpoints of FastReID become runs whose embeddings are its own.

Its code is not needed: state dicts are made with its exact names and shapes, and the embeddings are computed from them
once more, straight through, by torch's functions.
"""

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reidcore import load_model
from reidcore.testing import run_cli

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 34: (3, 4, 6, 3)}
NON_LOCAL = {50: (0, 2, 3, 0), 101: (0, 2, 9, 0), 34: (0, 3, 3, 0)}
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


class Names(collections.UserDict):
    """A state dict in the making, filled with what a training could leave."""

    def __init__(self):
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def add(self, name, *shape, low=None, high=None):
        if low is None:
            fan = max(1, int(np.prod(shape[1:])))
            self[name] = torch.randn(shape, generator=self.random) * (1.5 / fan) ** 0.5
        else:
            self[name] = torch.rand(shape, generator=self.random) * (high - low) + low

    def norm(self, name, channels, running=True, scale=(0.5, 1.5)):
        self.add(f"{name}.weight", channels, low=scale[0], high=scale[1])
        self.add(f"{name}.bias", channels, low=-0.2, high=0.2)
        if running:
            self.add(f"{name}.running_mean", channels, low=-0.2, high=0.2)
            self.add(f"{name}.running_var", channels, low=0.5, high=1.5)
            self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def stage(self, prefix, blocks, channels, width, expansion, ibn, first=0):
        """Add the blocks of a stage from `first` on, and return the channels of its map."""
        out = width * expansion
        for index in range(first, blocks):
            name = f"{prefix}.{index - first}"
            sizes = [(width, 1), (width, 3), (out, 1)] if expansion == 4 else [(width, 3), (out, 3)]
            before = channels
            for number, (size, kernel) in enumerate(sizes, start=1):
                self.add(f"{name}.conv{number}.weight", size, before, kernel, kernel)
                if number == 1 and ibn:
                    self.norm(f"{name}.bn1.IN", size // 2, running=False)
                    self.norm(f"{name}.bn1.BN", size - size // 2)
                else:
                    self.norm(f"{name}.bn{number}", size, scale=(0.1, 0.4) if number == len(sizes) else (0.5, 1.5))
                before = size
            if index == 0 and (
                channels != out or prefix.endswith(("layer2", "layer3", "layer4", "backbone.5", "backbone.6"))
            ):
                self.add(f"{name}.downsample.0.weight", out, channels, 1, 1)
                self.norm(f"{name}.downsample.1", out)
            channels = out
        return channels

    def non_local(self, name, channels):
        for part in ("g", "theta", "phi"):
            self.add(f"{name}.{part}.weight", 1, channels, 1, 1, low=-0.02, high=0.02)
            self.add(f"{name}.{part}.bias", 1)
        self.add(f"{name}.W.0.weight", channels, 1, 1, 1)
        self.add(f"{name}.W.0.bias", channels)
        self.norm(f"{name}.W.1", channels, scale=(0.1, 0.3))


def checkpoint(depth, *, ibn=False, attention=False, exponent=None, old=True, classes=11):
    """Return the state dict of a person model of the zoo."""
    names = Names()
    names.add("backbone.conv1.weight", 64, 3, 7, 7)
    names.norm("backbone.bn1", 64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        width, expansion = 32 << stage, 1 if depth == 34 else 4
        channels = names.stage(f"backbone.layer{stage}", blocks, channels, width, expansion, ibn and stage < 4)
        for index in range(NON_LOCAL[depth][stage - 1] if attention else 0):
            names.non_local(f"backbone.NL_{stage}.{index}", channels)
    names.norm("heads.bnneck" if old else "heads.bottleneck.0", channels)
    names.add("heads.classifier.weight" if old else "heads.weight", classes, channels)
    if exponent:
        names["heads.pool_layer.p"] = torch.tensor([exponent])
    if old:
        names["pixel_mean"], names["pixel_std"] = MEAN.view(1, 3, 1, 1), STD.view(1, 3, 1, 1)
    return dict(names)


def normed(state, name, x):
    part = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *part)


def block(state, name, x, stride):
    convolutions = [number for number in (1, 2, 3) if f"{name}.conv{number}.weight" in state]
    y = x
    for number in convolutions:
        weight = state[f"{name}.conv{number}.weight"]
        here = stride if weight.shape[2] == 3 and number == (2 if len(convolutions) == 3 else 1) else 1
        y = F.conv2d(y, weight, stride=here, padding=weight.shape[2] // 2)
        if f"{name}.bn{number}.IN.weight" in state:
            half = len(state[f"{name}.bn{number}.IN.weight"])
            inner = F.instance_norm(
                y[:, :half], weight=state[f"{name}.bn{number}.IN.weight"], bias=state[f"{name}.bn{number}.IN.bias"]
            )
            y = torch.cat([inner, normed(state, f"{name}.bn{number}.BN", y[:, half:])], 1)
        else:
            y = normed(state, f"{name}.bn{number}", y)
        if number != convolutions[-1]:
            y = F.relu(y)
    if f"{name}.downsample.0.weight" in state:
        x = normed(state, f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
    return F.relu(x + y)


def attended(state, name, x):
    """f = theta(x)^T phi(x) / N; the result is x + W(f g(x))."""
    g, theta, phi = (
        F.conv2d(x, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"]).flatten(2)
        for part in ("g", "theta", "phi")
    )
    f = theta.transpose(1, 2) @ phi / phi.shape[2]
    y = (f @ g.transpose(1, 2)).transpose(1, 2).reshape(len(x), 1, *x.shape[2:])
    return x + normed(state, f"{name}.W.1", F.conv2d(y, state[f"{name}.W.0.weight"], state[f"{name}.W.0.bias"]))


def stem(state, images, conv, norm, pad):
    x = (images.permute(0, 3, 1, 2).float() - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
    x = F.relu(normed(state, norm, F.conv2d(x, state[f"{conv}.weight"], stride=2, padding=3)))
    return F.max_pool2d(x, 3, 2, 1) if pad else F.max_pool2d(x, 3, 2, ceil_mode=True)


def pooled(x, exponent):
    if exponent is None:
        return x.mean((2, 3))
    return x.clamp(min=1e-6).pow(exponent).mean((2, 3)).pow(1 / exponent)


def straight(state, images, depth, *, attention, exponent, pad):
    """Return FastReID's embeddings: what is after the neck."""
    x = stem(state, images, "backbone.conv1", "backbone.bn1", pad)
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        plain = blocks - (NON_LOCAL[depth][stage - 1] if attention else 0)
        for index in range(blocks):
            x = block(state, f"backbone.layer{stage}.{index}", x, 2 if index == 0 and stage in (2, 3) else 1)
            if index >= plain:
                x = attended(state, f"backbone.NL_{stage}.{index - plain}", x)
    neck = "heads.bnneck" if "heads.bnneck.weight" in state else "heads.bottleneck.0"
    return normed(state, neck, pooled(x, exponent))


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 4, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
SMALL = ("--set", "input.height=64", "--set", "input.width=32", "--set", "training.precision=float32")


def take_over(tmp_path: Path, state, name: str, *more: object):
    torch.save({"model": state, "epoch": 59, "metric": 0.9}, tmp_path / name)
    done = run_cli("import", tmp_path / name, "--from", "fastreid", "-o", tmp_path / "run", *SMALL, *more)
    return done, tmp_path / "run"


ZOO = {
    "market_bot_R50": (50, {}, None),
    "duke_bot_R50-ibn": (50, {"ibn": True}, None),
    "msmt_agw_R50-ibn": (50, {"ibn": True, "attention": True}, 2.7),
    "market_agw_R50": (50, {"attention": True}, 3.0),
    "market_sbs_R50": (50, {"attention": True}, 3.2),
    "duke_sbs_R101-ibn": (101, {"ibn": True, "attention": True}, 2.9),
    "veri_sbs_R50-ibn": (50, {"ibn": True, "attention": True}, 3.1),
    "vehicleid_bot_R50-ibn": (50, {"ibn": True}, 3.3),
}
SLOW = {"msmt_agw_R50-ibn", "market_agw_R50", "veri_sbs_R50-ibn", "vehicleid_bot_R50-ibn"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in ZOO])
def test_a_published_file_gives_fastreids_embeddings(name, tmp_path):
    depth, parts, exponent = ZOO[name]
    learnt = exponent if exponent != 3.0 else None  # a fixed one is not in the file
    state = checkpoint(depth, exponent=learnt, **parts)
    done, run = take_over(tmp_path, state, f"{name}.pth")
    assert (done.status, done.err) == (0, "")
    assert f"resnet{depth} with 11 classes" in done.out and "pools with padding" in done.out
    with torch.no_grad():
        attention = parts.get("attention", False)
        expected = straight(state, torch.from_numpy(IMAGES), depth, attention=attention, exponent=exponent, pad=True)
    found = torch.from_numpy(load_model(run).embed(list(IMAGES)))
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_new_names_pool_by_sizes_rounded_up(tmp_path):
    state = checkpoint(34, exponent=2.5, old=False)
    done, run = take_over(tmp_path, state, "model_best.pth")
    assert done.status == 0 and "resnet34 with 11 classes" in done.out and "by sizes rounded up" in done.out
    images = torch.from_numpy(IMAGES)
    with torch.no_grad():
        ceil, padded = (straight(state, images, 34, attention=False, exponent=2.5, pad=pad) for pad in (False, True))
    found = torch.from_numpy(load_model(run).embed(list(IMAGES)))
    assert (1 - torch.cosine_similarity(found, ceil)).max() < 1e-5 < (1 - torch.cosine_similarity(found, padded)).max()


def granular(classes=5):
    """Return the state dict of MGN with ResNet-50 and IBN-a, by FastReID's last names."""
    names = Names()
    names.add("backbone.0.weight", 64, 3, 7, 7)
    names.norm("backbone.1", 64)
    channels = names.stage("backbone.4", 3, 64, 64, 4, True)
    for number, (width, blocks) in {5: (128, 4), 6: (256, 1)}.items():
        channels = names.stage(f"backbone.{number}", blocks, channels, width, 4, True)
    for branch in ("b1", "b2", "b3"):
        names.stage(f"{branch}.0", 6, 1024, 256, 4, True, first=1)
        names.stage(f"{branch}.1", 3, 1024, 512, 4, False)
    for view in ("b1", "b2", "b21", "b22", "b3", "b31", "b32", "b33"):
        names.add(f"{view}_head.bottleneck.0.weight", 256, 2048, 1, 1)
        names.norm(f"{view}_head.bottleneck.1", 256)
        names.add(f"{view}_head.weight", classes, 256)
        names[f"{view}_head.pool_layer.p"] = torch.tensor([2.5 + 0.1 * len(view)])
    # the first block of the third stage stands there by itself
    return {key.replace("backbone.6.0.", "backbone.6."): value for key, value in names.items()}


def test_the_multi_granularity_network_is_taken_over(tmp_path):
    state = granular()
    done, run = take_over(tmp_path, state, "market_mgn_R50-ibn.pth")
    assert (done.status, done.err) == (0, "")
    with torch.no_grad():
        x = stem(state, torch.from_numpy(IMAGES), "backbone.0", "backbone.1", pad=False)
        for number, blocks in ((4, 3), (5, 4)):
            for index in range(blocks):
                x = block(state, f"backbone.{number}.{index}", x, 2 if index == 0 and number == 5 else 1)
        x = block(state, "backbone.6", x, 2)
        maps = {}
        for branch in ("b1", "b2", "b3"):
            y = x
            for index in range(5):
                y = block(state, f"{branch}.0.{index}", y, 1)
            for index in range(3):
                y = block(state, f"{branch}.1.{index}", y, 1)
            maps[branch] = y
        height = maps["b2"].shape[2]
        for branch, count in (("b2", 2), ("b3", 3)):
            for part in range(count):
                low, high = part * height // count, -(-(part + 1) * height // count)
                maps[f"{branch}{part + 1}"] = maps[branch][:, :, low:high]
        parts = []
        for view in ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33"):
            vector = pooled(maps[view], state[f"{view}_head.pool_layer.p"])
            reduced = F.conv2d(vector[:, :, None, None], state[f"{view}_head.bottleneck.0.weight"]).flatten(1)
            parts.append(normed(state, f"{view}_head.bottleneck.1", reduced))
    expected = torch.cat(parts, 1)
    found = torch.from_numpy(load_model(run).embed(list(IMAGES)))
    assert found.shape == expected.shape == (3, 8 * 256)
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5


@pytest.fixture(scope="module")
def small():
    return checkpoint(34, exponent=3.0, old=False)


REFUSED = {
    "a key is missing": (lambda s: s.pop("backbone.layer2.1.bn2.bias"), "it lacks backbone.layer2.1.bn2.bias"),
    "a key has another name": (
        lambda s: s.update({"backbone.layer1.0.bn1.scale": s.pop("backbone.layer1.0.bn1.weight")}),
        "it lacks backbone.layer1.0.bn1.weight\nbackbone.layer1.0.bn1.scale is left over",
    ),
    "another shape": (
        lambda s: s.update({"backbone.layer1.0.conv2.weight": torch.zeros(64, 64, 1, 1)}),
        "backbone.layer1.0.conv2.weight is 64x64x1x1, not 64x64x3x3",
    ),
    "a stage is gone": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("backbone.layer4.2")],
        "its stages have 3, 4, 6, 2 blocks, as no ResNet or ResNeXt that is known",
    ),
    "other pixels": (
        lambda s: s.update({"pixel_mean": torch.full((1, 3, 1, 1), 127.5)}),
        "its pixel_mean is [127.5, 127.5",
    ),
    "an old mgn": (lambda s: s.update({"b1_pool.1.weight": torch.zeros(1)}), "from before September 2020"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_every_name(small, change, message, tmp_path):
    state = dict(small)
    change(state)
    done, run = take_over(tmp_path, state, "model_best.pth")
    assert done.status == 2 and message in done.err and not run.exists()


def test_what_nothing_says_is_asked_for(small, tmp_path):
    state = {key: value for key, value in small.items() if key != "heads.pool_layer.p"}
    torch.save(state, tmp_path / "m.pth")
    command = ("import", tmp_path / "m.pth", "--from", "fastreid", "-o", tmp_path / "run")
    assert "do not say [input], nor does the file's name; add --set input.height=256" in run_cli(*command).err
    assert (
        "do not say [aggregator], nor does the file's name; add --set aggregator.name=avg"
        in run_cli(*command, *SMALL).err
    )
    assert run_cli(*command, *SMALL, "--set", "aggregator.name=avg").status == 0
    assert f"{tmp_path / 'run'} exists" in run_cli(*command, *SMALL, "--set", "aggregator.name=avg").err


def test_a_configuration_says_what_weights_do_not(small, tmp_path):
    state = {key: value for key, value in small.items() if key != "heads.pool_layer.p"}
    (tmp_path / "c.yml").write_text(
        "MODEL: {BACKBONE: {DEPTH: 34x, LAST_STRIDE: 1}, HEADS: {WITH_BNNECK: True, POOL_LAYER: GlobalAvgPool}}\n"
        "INPUT: {SIZE_TRAIN: [64, 32]}\nDATASETS:\n  NAMES: ('VeRi',)\n  TESTS: ('VeRi',)\n"
    )
    torch.save(state, tmp_path / "m.pth")
    command = (
        "import",
        tmp_path / "m.pth",
        "--from",
        "fastreid",
        "--config",
        tmp_path / "c.yml",
        "-o",
        tmp_path / "run",
    )
    assert run_cli(*command, "--set", "training.precision=float32").status == 0
    with torch.no_grad():
        expected = straight(state, torch.from_numpy(IMAGES), 34, attention=False, exponent=None, pad=False)
    found = torch.from_numpy(load_model(tmp_path / "run").embed(list(IMAGES)))
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5
    assert 'name = "core:veri776"' in (tmp_path / "run" / "recipe.toml").read_text()


class Runs:
    def __reduce__(self):
        return (print, ("this must not be seen",))


def test_no_code_in_a_file_is_run(small, tmp_path, capsys):
    command = ("--from", "fastreid", "-o", tmp_path / "run", *SMALL)
    torch.save({"model": small, "metric": np.float64(0.9)}, tmp_path / "numpy.pth")
    assert run_cli("import", tmp_path / "numpy.pth", *command).status == 0
    torch.save({"model": small, "hook": Runs()}, tmp_path / "code.pth", pickle_module=pickle)
    command = ("--from", "fastreid", "-o", tmp_path / "another", *SMALL)
    done = run_cli("import", tmp_path / "code.pth", *command)
    assert done.status == 2 and "holds more than tensors and numbers" in done.err and "weights_only=False" in done.err
    assert "this must not be seen" not in capsys.readouterr().out + done.out
    (tmp_path / "x.pth").write_bytes(b"x")
    assert "which is damaged" in run_cli("import", tmp_path / "x.pth", *command).err
    torch.save([1], tmp_path / "list.pth")
    assert "holds no state dict" in run_cli("import", tmp_path / "list.pth", *command).err
