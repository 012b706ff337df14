"""A checkpoint of FastReID with ResNeSt becomes a run: its names of weights are this network's own."""

import numpy as np
import torch
import torch.nn.functional as F

from reidcore import load_model
from reidcore.networks import build_model
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli, seem_trained

NAMES = [
    "backbone.conv1.0.weight",
    "backbone.conv1.1.running_mean",
    "backbone.conv1.3.weight",
    "backbone.conv1.4.bias",
    "backbone.conv1.6.weight",
    "backbone.bn1.weight",
    "backbone.layer1.0.conv1.weight",
    "backbone.layer1.0.bn1.weight",
    "backbone.layer1.0.conv2.conv.weight",
    "backbone.layer1.0.conv2.bn0.weight",
    "backbone.layer1.0.conv2.fc1.weight",
    "backbone.layer1.0.conv2.bn1.weight",
    "backbone.layer1.0.conv2.fc2.bias",
    "backbone.layer1.0.conv3.weight",
    "backbone.layer1.0.bn3.weight",
    "backbone.layer2.0.downsample.1.weight",
    "backbone.layer2.0.downsample.2.running_var",
]


def test_the_published_names_are_taken_as_they_are(tmp_path) -> None:
    recipe = {
        "run": {"name": "x"},
        "train": [{"name": "synthetic"}],
        "input": {"height": 64, "width": 32},
        "backbone": {"name": "resnest50", "weights": "none"},
        "aggregator": {"name": "avg"},
    }
    model = seem_trained(build_model(load_recipe(recipe).recipe, 7))
    state = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    assert state.keys() >= set(NAMES)
    neck = {key: torch.rand(2048) + 0.5 for key in ("weight", "bias", "running_mean", "running_var")}
    state |= {f"heads.bnneck.{key}": value for key, value in neck.items()}
    state["heads.classifier.weight"] = torch.rand(7, 2048)
    torch.save({"model": state}, tmp_path / "market_bot_S50.pth")
    sets = ["input.height=64", "input.width=32", "training.precision=float32"]
    more = [word for item in sets for word in ("--set", item)]
    done = run_cli("import", tmp_path / "market_bot_S50.pth", "--from", "fastreid", "-o", tmp_path / "run", *more)
    assert (done.status, done.err, done.out) == (0, "", f"{tmp_path / 'run'}: resnest50 with 7 classes\n")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3)).astype(np.uint8)
    with torch.no_grad():
        pixels = model.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))
        vectors = model.backbone(pixels, ("stage4",))["stage4"].mean((2, 3))
        expected = F.batch_norm(vectors, neck["running_mean"], neck["running_var"], neck["weight"], neck["bias"])
    found = torch.from_numpy(load_model(tmp_path / "run").embed(list(images)))
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5
