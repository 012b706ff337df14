"""Files of torchreid and torchvision become runs whose embeddings are the other program's."""

import importlib.metadata
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from reidcore import load_model
from reidcore.testing import run_cli, seem_trained

FILES = runpy.run_path(str(Path(__file__).parent / "torchreid_osnet.py"))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def pictures(height: int, width: int) -> np.ndarray:
    """Return (3, height, width, 3) uint8 images of coarse noise."""
    small = np.random.default_rng(0).integers(0, 256, (3, height // 8, width // 8, 3)).astype(np.uint8)
    return small.repeat(8, 1).repeat(8, 2)


def normalised(images: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(images).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def take_over(tmp_path: Path, content: object, kind: str, *sets: str):
    """Import what torch saves of `content`, and return what the command line said, and the run."""
    torch.save(content, tmp_path / "model.pth")
    more = [word for item in (*sets, "training.precision=float32") for word in ("--set", item)]
    done = run_cli("import", tmp_path / "model.pth", "--from", kind, "-o", tmp_path / "run", *more)
    return done, tmp_path / "run"


def assert_same(run: Path, images: np.ndarray, expected: torch.Tensor) -> None:
    found = torch.from_numpy(load_model(run).embed(list(images)))
    assert found.shape == expected.shape
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


OSNETS = {
    "osnet_x1_0": ("", 1.0, "osnet-x1.0"),
    "osnet_x0_75": ("", 0.75, "osnet-x0.75"),
    "osnet_x0_5": ("", 0.5, "osnet-x0.5"),
    "osnet_x0_25": ("", 0.25, "osnet-x0.25"),
    "osnet_ibn_x1_0": ("ibn_", 1.0, "osnet-x1.0"),
    "osnet_ain_x1_0": ("ain_", 1.0, "osnet-ain-x1.0"),
}


@pytest.mark.parametrize(("form", "width", "name"), OSNETS.values(), ids=OSNETS)
def test_an_osnet_of_torchreid_gives_its_embeddings(form, width, name, tmp_path):
    state = FILES["checkpoint"](form, width)
    done, run = take_over(tmp_path, state, "torchreid")
    assert (done.status, done.err) == (0, "")
    assert f"run: {name} with 7 classes\nthe bias of its classifier was left out" in done.out
    assert "torchreid resizes bilinearly, this project bicubically" in done.out
    images = pictures(256, 128)
    with torch.no_grad():
        assert_same(run, images, FILES["Published"](state).embedding(normalised(images)))
    assert torch.equal(load_model(run).model.heads["global"].classifier.weight, state["classifier.weight"])
    distance = "cosine" if form == "ain_" else "euclidean"
    assert f'distance = "{distance}"' in (run / "recipe.toml").read_text()


def test_a_checkpoint_of_torchreids_training_is_taken_over_as_its_weights_alone(tmp_path):
    state = FILES["checkpoint"]("", 0.25)
    training = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 60}
    training |= {"rank1": np.float64(0.94), "optimizer": {"state": {}, "param_groups": [{"lr": 0.0015}]}}
    done, run = take_over(tmp_path, training, "torchreid", "input.height=64", "input.width=32")
    assert (done.status, done.err) == (0, "")
    images = pictures(64, 32)
    with torch.no_grad():
        assert_same(run, images, FILES["Published"](state).embedding(normalised(images)))


REFUSED = {
    "a weight is missing": (
        lambda s: (s.pop("conv3.1.gate.fc2.bias"), s.pop("fc.1.running_mean")),
        ("it lacks backbone.conv3.1.gate.fc2.bias\n", "it lacks heads.global.fc.1.running_mean"),
    ),
    "a weight has another name": (
        lambda s: s.update({"conv5.conv.kernel": s.pop("conv5.conv.weight")}),
        ("it lacks backbone.conv5.conv.weight\nbackbone.conv5.conv.kernel is left over",),
    ),
    "another shape": (
        lambda s: s.update({"conv2.0.conv2a.conv2.weight": torch.zeros(16, 1, 1, 1)}),
        ("backbone.conv2.0.conv2a.conv2.weight is 16x1x1x1, not 16x1x3x3",),
    ),
    "another width": (
        lambda s: s.update({"conv1.conv.weight": torch.zeros(24, 3, 7, 7)}),
        ("its stem has 24 channels; expected 64, 48, 32, 16, as OSNet has",),
    ),
    "another network": (lambda s: s.pop("conv1.conv.weight"), ("is of no OSNet, the only network of torchreid's",)),
}


@pytest.mark.parametrize(("change", "messages"), REFUSED.values(), ids=REFUSED)
def test_an_osnet_that_does_not_fit_is_refused_with_every_name(change, messages, tmp_path):
    state = FILES["checkpoint"]("", 0.25)
    change(state)
    done, run = take_over(tmp_path, state, "torchreid")
    assert done.status == 2 and all(message in done.err for message in messages) and not run.exists()


NETWORKS = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50_32x4d": "resnext50-32x4d",
    "resnext101_32x8d": "resnext101-32x8d",
}
QUICK = ("resnet18", "resnet50", "resnext50_32x4d")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NETWORKS])
def test_a_residual_network_of_torchvision_gives_what_its_classifier_is_given(name, tmp_path):
    torch.manual_seed(0)
    model = seem_trained(getattr(torchvision.models, name)(num_classes=10))
    done, run = take_over(tmp_path, model.state_dict(), "torchvision", "input.height=96", "input.width=64")
    assert (done.status, done.err) == (0, "")
    assert f"run: {NETWORKS[name]} without a classifier\n" in done.out and "for images of 96x64 pixels" in done.out
    model.fc = torch.nn.Identity()
    images = pictures(96, 64)
    with torch.no_grad():
        assert_same(run, images, model(normalised(images)))


def test_a_vision_transformer_of_torchvision_gives_its_class_token(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(num_classes=10)
    torch.nn.init.normal_(model.class_token)
    seem_trained(model)
    done, run = take_over(tmp_path, model.state_dict(), "torchvision")
    assert (done.status, done.err) == (0, "") and "run: vit-base without a classifier" in done.out
    model.heads = torch.nn.Identity()
    images = pictures(224, 224)
    with torch.no_grad():
        assert_same(run, images, model(normalised(images)))


TORCHVISION_REFUSED = {
    "a weight is missing": (lambda s: s.pop("layer2.0.bn1.bias"), "it lacks backbone.layer2.0.bn1.bias"),
    "a weight is left over": (
        lambda s: s.update({"layer1.0.bias": torch.zeros(3)}),
        "backbone.layer1.0.bias is left over",
    ),
    "another shape": (
        lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
        "backbone.conv1.weight is 64x1x7x7, not 64x3x7x7",
    ),
    "another depth": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("layer3.1")],
        "its stages have 2, 2, 1, 2 blocks, as no ResNet or ResNeXt that is known",
    ),
    "another transformer": (
        lambda s: s.update({"conv_proj.weight": torch.zeros(1024, 3, 16, 16)}),
        "its tokens have 1024 channels; expected a vision transformer of 192, 384, 768",
    ),
}


@pytest.mark.parametrize(("change", "message"), TORCHVISION_REFUSED.values(), ids=TORCHVISION_REFUSED)
def test_a_network_of_torchvision_that_does_not_fit_is_refused(change, message, tmp_path):
    state = torchvision.models.resnet18().state_dict()
    change(state)
    done, run = take_over(tmp_path, state, "torchvision")
    assert done.status == 2 and message in done.err and not run.exists()


def test_safetensors_are_read_as_well(tmp_path):
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "model.safetensors")
    done = run_cli("import", tmp_path / "model.safetensors", "--from", "torchvision", "-o", tmp_path / "run")
    assert done.status == 0


def test_timm_needs_the_models_name(tmp_path):
    done, run = take_over(tmp_path, {"a": torch.zeros(1)}, "timm")
    assert done.status == 2 and not run.exists()
    assert "a file of timm does not say which model it is of; add --set backbone.model=NAME" in done.err


def test_timm_needs_its_plugin(tmp_path, monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    done, run = take_over(tmp_path, {"a": torch.zeros(1)}, "timm", "backbone.model=resnet18")
    assert done.status == 2 and not run.exists()
    assert "reid-timm>=0.1 is not installed\n  to install: pip install 'reid-timm>=0.1'" in done.err


class Runs:
    def __reduce__(self):
        return (print, ("this must not be seen",))


@pytest.mark.parametrize("kind", ["torchreid", "torchvision"])
def test_no_code_in_a_file_is_run(kind, tmp_path, capsys):
    torch.save({"state_dict": {}, "hook": Runs()}, tmp_path / "code.pth", pickle_module=pickle)
    done = run_cli("import", tmp_path / "code.pth", "--from", kind, "-o", tmp_path / "run")
    assert done.status == 2 and "holds more than tensors and numbers" in done.err
    assert "['state_dict']" in done.err and "weights_only=False" in done.err
    assert "this must not be seen" not in capsys.readouterr().out + done.out


def test_a_run_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    done, run = take_over(tmp_path, torchvision.models.resnet18().state_dict(), "torchvision")
    assert done.status == 2 and f"{run} exists" in done.err and not list(run.iterdir())


def test_a_configuration_is_fastreids(tmp_path):
    done = run_cli("import", "x.pth", "--from", "torchreid", "-o", tmp_path / "run", "--config", "x.yml")
    assert (done.status, "--config is for checkpoints of FastReID" in done.err) == (2, True)
