"""Checkpoints of FastReID with ResNeSt become runs whose embeddings are its own.

State dicts are made with its exact names and shapes, and the embeddings are computed from them once more, straight
through, by torch's functions.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid_resnest.network import ResNeSt
from reidcore import load_model
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STEM = {50: 32, 101: 64}
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def checkpoint(depth, *, exponent=None, old=True, classes=7):
    """Return the state dict of a person model of the zoo, filled with what a training could leave."""
    random = torch.Generator().manual_seed(0)
    state = {}

    def tensor(name, *shape):
        state[name] = torch.randn(shape, generator=random) * (1.5 / max(1, int(np.prod(shape[1:])))) ** 0.5

    def norm(name, channels, scale=(0.5, 1.5)):
        parts = {"weight": scale, "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
        for part, (low, high) in parts.items():
            state[f"{name}.{part}"] = torch.rand(channels, generator=random) * (high - low) + low
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def block(name, channels, width, first):
        out, inner = 4 * width, max(width // 2, 32)
        tensor(f"{name}.conv1.weight", width, channels, 1, 1)
        norm(f"{name}.bn1", width)
        tensor(f"{name}.conv2.conv.weight", 2 * width, width // 2, 3, 3)
        norm(f"{name}.conv2.bn0", 2 * width)
        tensor(f"{name}.conv2.fc1.weight", inner, width, 1, 1)
        tensor(f"{name}.conv2.fc1.bias", inner)
        norm(f"{name}.conv2.bn1", inner)
        tensor(f"{name}.conv2.fc2.weight", 2 * width, inner, 1, 1)
        tensor(f"{name}.conv2.fc2.bias", 2 * width)
        tensor(f"{name}.conv3.weight", out, width, 1, 1)
        norm(f"{name}.bn3", out, scale=(0.1, 0.4))
        if first:
            tensor(f"{name}.downsample.1.weight", out, channels, 1, 1)
            norm(f"{name}.downsample.2", out)
        return out

    stem = STEM[depth]
    for place, (before, after) in {0: (3, stem), 3: (stem, stem), 6: (stem, 2 * stem)}.items():
        tensor(f"backbone.conv1.{place}.weight", after, before, 3, 3)
    for name in ("backbone.conv1.1", "backbone.conv1.4"):
        norm(name, stem)
    channels = 2 * stem
    norm("backbone.bn1", channels)
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for index in range(blocks):
            channels = block(f"backbone.layer{stage}.{index}", channels, 32 << stage, index == 0)
    norm("heads.bnneck" if old else "heads.bottleneck.0", channels)
    tensor("heads.classifier.weight" if old else "heads.weight", classes, channels)
    if exponent:
        state["heads.pool_layer.p"] = torch.tensor([exponent])
    return state


def straight(state, images, depth, exponent):
    """Return FastReID's embeddings of (B, H, W, 3) images: what is after the neck."""

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def normed(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    def attended(x, name, dilation):
        x = F.relu(normed(conv(x, f"{name}.conv", padding=dilation, dilation=dilation, groups=2), f"{name}.bn0"))
        first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        means = F.adaptive_avg_pool2d(first + second, 1)
        scores = conv(F.relu(normed(conv(means, f"{name}.fc1"), f"{name}.bn1")), f"{name}.fc2")
        weights = F.softmax(scores.reshape(len(x), 2, -1), 1)[:, :, :, None, None]
        return weights[:, 0] * first + weights[:, 1] * second

    x = (images.permute(0, 3, 1, 2).float() - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
    x = F.relu(normed(conv(x, "backbone.conv1.0", stride=2, padding=1), "backbone.conv1.1"))
    x = F.relu(normed(conv(x, "backbone.conv1.3", padding=1), "backbone.conv1.4"))
    x = F.relu(normed(conv(x, "backbone.conv1.6", padding=1), "backbone.bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for index in range(blocks):
            name, stride = f"backbone.layer{stage}.{index}", 2 if index == 0 and stage in (2, 3) else 1
            y = F.relu(normed(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = attended(y, f"{name}.conv2", 2 if index and stage == 4 else 1)
            if index == 0 and stage > 1:
                y = F.avg_pool2d(y, 3, stride=stride, padding=1)
            y = normed(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if index == 0:
                if stride == 2:
                    x = F.avg_pool2d(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
                x = normed(conv(x, f"{name}.downsample.1"), f"{name}.downsample.2")
            x = F.relu(x + y)
    vector = x.mean((2, 3)) if exponent is None else x.clamp(min=1e-6).pow(exponent).mean((2, 3)).pow(1 / exponent)
    return normed(vector, "heads.bnneck" if "heads.bnneck.weight" in state else "heads.bottleneck.0")


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 4, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)


def take_over(tmp_path, state, name):
    torch.save({"model": state, "epoch": 59}, tmp_path / name)
    sets = ("input.height=64", "input.width=32", "training.precision=float32")
    more = [word for item in sets for word in ("--set", item)]
    done = run_cli("import", tmp_path / name, "--from", "fastreid", "-o", tmp_path / "run", *more)
    return done, tmp_path / "run"


ZOO = {
    "market_bot_S50.pth": (50, None, True),
    "duke_sbs_S50.pth": (50, 3.2, True),
    "model_best.pth": (101, 2.8, False),  # NAIC's winner had this depth
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if ZOO[n][0] == 101 else ()) for n in ZOO])
def test_a_file_gives_fastreids_embeddings(name, tmp_path) -> None:
    depth, exponent, old = ZOO[name]
    state = checkpoint(depth, exponent=exponent, old=old)
    done, run = take_over(tmp_path, state, name)
    assert (done.status, done.err, done.out) == (0, "", f"{run}: resnest{depth} with 7 classes\n")
    assert '"reid-resnest>=0.1"' in (run / "recipe.toml").read_text()
    with torch.no_grad():
        expected = straight(state, torch.from_numpy(IMAGES), depth, exponent)
    found = torch.from_numpy(load_model(run).embed(list(IMAGES)))
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def state50():
    return checkpoint(50)


REFUSED = {
    "a key is missing": (
        lambda s: s.pop("backbone.layer2.1.conv2.bn1.running_var"),
        "it lacks backbone.layer2.1.conv2.bn1.running_var",
    ),
    "a key has another name": (
        lambda s: s.update({"backbone.layer1.0.conv2.fc3.bias": s.pop("backbone.layer1.0.conv2.fc2.bias")}),
        "it lacks backbone.layer1.0.conv2.fc2.bias\nbackbone.layer1.0.conv2.fc3.bias is left over",
    ),
    "another shape": (
        lambda s: s.update({"backbone.layer3.0.conv2.conv.weight": torch.zeros(512, 256, 3, 3)}),
        "backbone.layer3.0.conv2.conv.weight is 512x256x3x3, not 512x128x3x3",
    ),
    "a block is gone": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("backbone.layer3.5.")],
        "its stages have 3, 4, 5, 3 blocks, as no ResNeSt that is known",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_its_name(state50, change, message, tmp_path) -> None:
    state = dict(state50)
    change(state)
    done, run = take_over(tmp_path, state, "market_bot_S50.pth")
    assert done.status == 2 and message in done.err and not run.exists()


def test_a_backbone_starts_from_a_published_model(state50, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file: Path = tmp_path / "hub" / "checkpoints" / "market_bot_S50.pth"
    file.parent.mkdir(parents=True)
    torch.save({"model": state50}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    backbone = {"name": "resnest50", "weights": f"zoo:market_bot_S50@{digest[:12]}"}
    recipe = load_recipe({"run": {"name": "x"}, "train": [{"name": "synthetic"}], "backbone": backbone}).recipe
    network = recipe.backbone.build(64, 32)
    assert isinstance(network, ResNeSt)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state50[f"backbone.{key}"]), key
