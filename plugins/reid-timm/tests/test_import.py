"""A file of a timm model becomes a run: the means of the model's last map."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from reidcore import load_model
from reidcore.testing import run_cli, seem_trained


def take_over(file: Path, run: Path, *sets: str):
    more = [word for item in (*sets, "training.precision=float32") for word in ("--set", item)]
    return run_cli("import", file, "--from", "timm", "-o", run, *more)


SMALL = ("input.height=64", "input.width=32")


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", SMALL), ("test_vit", ("input.height=160", "input.width=160"))]
)
def test_a_models_file_gives_what_its_classifier_is_given(name: str, size: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = seem_trained(timm.create_model(name))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    done = take_over(tmp_path / "model.safetensors", tmp_path / "run", f"backbone.model={name}", *size)
    assert (done.status, done.err) == (0, "") and "run: timm without a classifier" in done.out
    height, width = (int(text.partition("=")[2]) for text in size)
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3)).astype(np.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    with torch.no_grad():
        pixels = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    found = torch.from_numpy(load_model(tmp_path / "run").embed(list(images)))
    assert (1 - torch.cosine_similarity(found, expected)).max() < 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert 'weights = "none"' in text and 'requires = [\n    "reid-timm>=0.1",\n]' in text


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    blocks = [key for key in state if key.startswith("layer1.0.") and not key.endswith("num_batches_tracked")]
    for key in blocks:
        state[f"{key}.old"] = state.pop(key)
    torch.save(state, tmp_path / "model.pth")
    done = take_over(tmp_path / "model.pth", tmp_path / "run", "backbone.model=test_resnet", *SMALL)
    assert done.status == 2 and not (tmp_path / "run").exists()
    assert all(f'"{key}"' in done.err and f'"{key}.old"' in done.err for key in blocks)


def test_a_model_that_timm_does_not_have_is_named(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "model.pth")
    done = take_over(tmp_path / "model.pth", tmp_path / "run", "backbone.model=test_resnett")
    assert done.status == 2 and "has no model 'test_resnett'; did you mean 'test_resnet'" in done.err
