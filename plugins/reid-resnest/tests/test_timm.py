"""The networks against timm's, which keep the authors' parameter names."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reid_resnest import reidcore_backbones

timm = pytest.importorskip("timm", reason="timm is not installed; it is in the dependency group dev")

CONFIGS = {component.name: component.config for component in reidcore_backbones()}
NAMES = {
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
}


def build(name: str, height: int = 64, width: int = 32, **options: Any) -> Any:
    return CONFIGS[name](weights="none", **options).build(height, width)


def narrow(name: str, base: int) -> Any:
    """timm's network of this name with `base` instead of 64 channels in stage 1."""
    config = CONFIGS[name]
    return timm.models.resnet.ResNet(
        timm.models.resnest.ResNestBottleneck,
        config.blocks,
        channels=tuple(base << stage for stage in range(4)),
        stem_type="deep",
        stem_width=config.stem_width * base // 64,
        avg_down=True,
        block_args={"radix": 2, "avd": True},
    )


def randomized(model: Any) -> Any:
    """Give the batch norms statistics and weights that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return model


def without_fc(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}


def reference_maps(model: Any, images: Tensor) -> dict[str, Tensor]:
    x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
    maps = {}
    for number in (1, 2, 3, 4):
        for index, block in enumerate(getattr(model, f"layer{number}")):
            x = block(x)
            maps[f"stage{number}.{index}"] = x
        maps[f"stage{number}"] = x
    return maps


def assert_same_maps(ours: Any, theirs: Any, height: int = 64, width: int = 32) -> None:
    """Compare all maps in double precision, for timm's state dict."""
    ours.load_state_dict(without_fc(theirs), strict=True)
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        found = ours.double().eval()(images, ("stage1", "stage2", "stage3.0", "stage3", "stage4"))
        expected = reference_maps(theirs.double().eval(), images)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)
        assert value.std() > 0.1, "the maps are too flat to tell anything"


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_timms_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(name).state_dict(), without_fc(timm.create_model(NAMES[name]))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_the_published_resnest50_has_timms_maps() -> None:
    torch.manual_seed(0)
    theirs = randomized(timm.create_model("resnest50d"))
    assert_same_maps(build("resnest50", 75, 41, last_stride=2), theirs, 75, 41)


@pytest.mark.parametrize("name", ["resnest101", "resnest269"])
def test_a_narrow_network_has_timms_maps(name: str) -> None:
    torch.manual_seed(0)
    assert_same_maps(build(name, base=8, last_stride=2), randomized(narrow(name, 8)))


def test_a_dilated_network_is_timms_but_for_two_poolings() -> None:
    # Without the stride the authors' first block of stage 4 averages over 3x3 still, and its shortcut not at all;
    # timm's does neither the one nor the other.
    torch.manual_seed(0)
    theirs = randomized(timm.create_model("resnest50d", output_stride=16))
    theirs.layer4[0].avd_last = nn.AvgPool2d(3, 1, padding=1)
    theirs.layer4[0].downsample[0] = nn.Identity()
    assert_same_maps(build("resnest50", last_stride=1), theirs)


def test_gradients_and_statistics_of_a_training_step_are_timms() -> None:
    torch.manual_seed(0)
    theirs = randomized(narrow("resnest50", 8)).double().train()
    ours = build("resnest50", base=8, last_stride=2).double().train()
    ours.load_state_dict(without_fc(theirs))
    images = torch.randn(4, 3, 64, 32, dtype=torch.float64)
    ours(images, ["stage4"])["stage4"].square().sum().backward()
    reference_maps(theirs, images)["stage4"].square().sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if not name.startswith("fc.")}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-6, atol=1e-12 * largest)
    for name, value in without_fc(theirs).items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-11)
