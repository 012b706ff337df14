"""OSNet against its published layers, written out by hand, and where its weights come from."""

import copy
import math
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidcore.builtin.modules.osnet import STAGES, Gate, OSNet
from reidcore.builtin.osnet import reidcore_backbones
from reidcore.errors import ContractError, ReidError

FILES = runpy.run_path(str(Path(__file__).parent / "torchreid_osnet.py"))
Published = FILES["Published"]

backbones = {component.name: component.config for component in reidcore_backbones()}


def randomized(model: nn.Module) -> nn.Module:
    """Give the norm layers statistics and weights that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.0)
    return model


@pytest.mark.parametrize(
    ("scale", "ibn", "ain"), [(1.0, False, False), (1.0, True, False), (0.25, False, False), (1.0, False, True)]
)
def test_maps_equal_the_published_networks_for_the_same_state_dict(scale: float, ibn: bool, ain: bool) -> None:
    torch.manual_seed(0)
    osnet = randomized(OSNet(scale, 48, 33, ibn, ain)).eval()
    published = Published(osnet.state_dict())
    images = torch.randn(2, 3, 48, 33)
    with torch.no_grad():
        maps, expected = osnet(images, STAGES), published.maps(images)
    for stage in STAGES:
        torch.testing.assert_close(maps[stage], expected[stage])
    assert {key for key in published.state if not key.endswith("num_batches_tracked")} == published.used


@pytest.mark.parametrize(("scale", "millions"), [(1.0, 2.193616), (0.75, 1.3), (0.5, 0.6), (0.25, 0.2)])
def test_the_number_of_parameters_is_the_published_one(scale: float, millions: float) -> None:
    # it counts the 512 outputs with their norm, and what the four streams of a block share, the gate, four times
    with torch.device("meta"):
        osnet = OSNet(scale, 64, 64)
    gates = sum(p.numel() for module in osnet.modules() if isinstance(module, Gate) for p in module.parameters())
    own = sum(p.numel() for p in osnet.parameters())
    outputs = (osnet.shapes["stage4"].channels + 1) * 512 + 2 * 512
    assert (own + 3 * gates + outputs) / 1e6 == pytest.approx(millions, abs=1e-9 if scale == 1 else 0.05)


def test_a_gate_of_a_hand_case() -> None:
    gate = Gate(16)
    with torch.no_grad():
        for tensor in gate.parameters():
            tensor.zero_()
        gate.fc1.weight[0, 2] = 1  # the one hidden number is the mean of channel 2: ln 3
        gate.fc2.weight[0], gate.fc2.weight[1] = 1, -1
    x = torch.ones(1, 16, 1, 2)
    x[0, 2] = torch.tensor([0.0, 2 * math.log(3)])
    weighted = gate(x)
    # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4, sigmoid(0) = 1/2, the same at both positions
    torch.testing.assert_close(weighted[0, :4, 0, 0], torch.tensor([0.75, 0.25, 0.0, 0.5]))
    torch.testing.assert_close(weighted[0, :4, 0, 1], torch.tensor([0.75, 0.25, math.log(3), 0.5]))


def test_a_gate_that_sees_nothing_closes() -> None:
    gate = Gate(32)
    nn.init.constant_(gate.fc2.bias, -100.0)
    assert gate(torch.zeros(1, 32, 2, 2)).abs().max() == 0


@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("scale", [0.75, 0.5, 0.25])
@pytest.mark.parametrize(("height", "width"), [(64, 32), (33, 50), (13, 13)])
def test_declared_shapes_are_the_real_ones(scale: float, ibn: bool, height: int, width: int) -> None:
    osnet = OSNet(scale, height, width, ibn)
    maps = osnet(torch.randn(2, 3, height, width), STAGES)
    assert list(osnet.shapes) == list(maps) == list(STAGES)
    for stage, shape in osnet.shapes.items():
        assert maps[stage].shape == (2, shape.channels, shape.height, shape.width)
        assert not shape.signed and maps[stage].min() >= 0


def test_a_person_of_256_by_128_pixels_becomes_16_by_8_positions() -> None:
    with torch.device("meta"):
        shapes = OSNet(1.0, 256, 128).shapes
    assert [(s.channels, s.height, s.width) for s in shapes.values()] == [
        (256, 32, 16),
        (384, 16, 8),
        (512, 16, 8),
        (512, 16, 8),
    ]


@pytest.mark.parametrize(("height", "width"), [(12, 64), (64, 12)])
def test_an_image_that_vanishes_is_refused(height: int, width: int) -> None:
    with pytest.raises(ContractError, match=f"found an input of {height}x{width} pixels; .* raise input.height"):
        OSNet(0.25, height, width)


@pytest.mark.parametrize(("want", "computed"), [(("stage1",), 1), (("stage3", "stage1"), 3), (("stage4",), 4), ((), 0)])
def test_only_what_is_wanted_is_computed(want: tuple[str, ...], computed: int) -> None:
    osnet = OSNet(0.25, 32, 32).eval()
    ran = []
    for layer in STAGES.values():
        getattr(osnet, layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    assert set(osnet(torch.randn(1, 3, 32, 32), want)) == set(want)
    assert ran == ["conv2", "conv3", "conv4", "conv5"][:computed]


def test_the_tail_is_a_copy_that_continues_where_the_map_ends() -> None:
    osnet = randomized(OSNet(0.25, 32, 32)).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        maps = osnet(images, STAGES)
        for stage in STAGES:
            tail = osnet.tail(stage)
            torch.testing.assert_close(tail(maps[stage]), maps["stage4"])
            for parameter in tail.parameters():
                parameter.zero_()
        assert torch.equal(osnet(images, ["stage4"])["stage4"], maps["stage4"])


def test_every_parameter_learns() -> None:
    osnet = OSNet(0.25, 32, 32, ibn=True)
    osnet(torch.randn(2, 3, 32, 32), ["stage4"])["stage4"].square().mean().backward()
    assert all(parameter.grad is not None for parameter in osnet.parameters())


@pytest.mark.parametrize("ibn", [False, True])
def test_it_can_be_exported_and_gives_the_same(ibn: bool) -> None:
    osnet = randomized(OSNet(0.25, 32, 16, ibn)).eval()
    images = torch.randn(2, 3, 32, 16)
    exported = torch.export.export(osnet, (images, ("stage2", "stage4")))
    expected = osnet(images, ("stage2", "stage4"))
    for stage, found in exported.module()(images, ("stage2", "stage4")).items():
        torch.testing.assert_close(found, expected[stage])


def test_copies_channels_last_and_bfloat16_give_the_same() -> None:
    osnet = randomized(OSNet(0.25, 32, 16, ibn=True)).eval()
    images = torch.randn(1, 3, 32, 16)
    with torch.no_grad():
        expected = osnet(images, ["stage4"])["stage4"]
        last = copy.deepcopy(osnet).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(images.to(memory_format=torch.channels_last), ["stage4"])["stage4"], expected)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = osnet(images, ["stage4"])["stage4"]
    assert F.cosine_similarity(coarse.float().flatten(), expected.flatten(), 0) > 0.999


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch keeps weights, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published_file(scale: float = 0.25, ibn: bool = False, prefix: str = "") -> dict[str, Tensor]:
    """Return a state dict as torchreid saves it: with outputs and classifier, or also with a prefix."""
    torch.manual_seed(1)
    network = OSNet(scale, 32, 32, ibn)
    network.fc = nn.Sequential(nn.Linear(128, 512), nn.BatchNorm1d(512))
    network.classifier = nn.Linear(512, 1000)
    return {f"{prefix}{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_torchreid_is_loaded_without_its_classifier(prefix: str, tmp_path: Path) -> None:
    state = published_file(prefix=prefix)
    torch.save(state, tmp_path / "osnet.pth")
    osnet = backbones["osnet-x0.25"](weights=str(tmp_path / "osnet.pth")).build(64, 32)
    assert len(osnet.state_dict()) == len(state) - 9
    for key, value in osnet.state_dict().items():
        assert torch.equal(value, state[f"{prefix}{key}"]), key


@pytest.mark.parametrize(("form", "options"), [("ibn_", {"ibn": True}), ("ain_", {}), ("", {})])
def test_a_backbone_takes_every_weight_by_torchreids_names(form: str, options: dict[str, bool], tmp_path: Path) -> None:
    state = FILES["checkpoint"](form)
    torch.save(state, tmp_path / "osnet.pth")
    name = "osnet-ain-x1.0" if form == "ain_" else "osnet-x1.0"
    osnet = backbones[name](weights=str(tmp_path / "osnet.pth"), **options).build(64, 32).eval()
    assert len(osnet.state_dict()) == len(state) - 9
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    exact = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    with torch.no_grad():
        found = osnet.double()(images, ["stage4"])["stage4"]
        torch.testing.assert_close(found, Published(exact).maps(images)["stage4"])


def test_a_file_of_another_width_does_not_fit(tmp_path: Path) -> None:
    torch.save(published_file(), tmp_path / "osnet.pth")
    with pytest.raises(ReidError, match=r"does not fit osnet-x0\.5: it has another shape of conv1\.conv\.weight"):
        backbones["osnet-x0.5"](weights=str(tmp_path / "osnet.pth")).build(64, 32)


@pytest.mark.parametrize(
    ("name", "ibn", "file"),
    [
        ("osnet-x1.0", False, "osnet_x1_0_imagenet.pth"),
        ("osnet-x0.75", False, "osnet_x0_75_imagenet.pth"),
        ("osnet-x0.5", False, "osnet_x0_5_imagenet.pth"),
        ("osnet-x0.25", False, "osnet_x0_25_imagenet.pth"),
        ("osnet-x1.0", True, "osnet_ibn_x1_0_imagenet.pth"),
        ("osnet-ain-x1.0", None, "osnet_ain_x1_0_imagenet.pth"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_imagenet_weights_that_are_not_there_are_asked_for(
    name: str, ibn: bool | None, file: str, device: str, checkpoints: Path
) -> None:
    options = {} if ibn is None else {"ibn": ibn}
    with torch.device(device), pytest.raises(ReidError) as caught:
        backbones[name](**options).build(64, 32)
    assert str(caught.value) == (
        f"backbone.weights: there is no {checkpoints / file}; download the ImageNet weights of {name} from torchreid's "
        "model zoo (https://kaiyangzhou.github.io/deep-person-reid/MODEL_ZOO) and put them there under this name, or "
        'write weights = "none" to start from random weights'
    )


def test_imagenet_weights_that_are_there_are_loaded(checkpoints: Path) -> None:
    state = published_file()
    torch.save(state, checkpoints / "osnet_x0_25_imagenet.pth")
    osnet = backbones["osnet-x0.25"]().build(64, 32)
    assert torch.equal(osnet.conv5.conv.weight, state["conv5.conv.weight"])
    with torch.device("meta"):
        assert backbones["osnet-x0.25"]().build(64, 32).conv5.conv.weight.is_meta


@pytest.mark.parametrize("name", ["osnet-x0.75", "osnet-x0.5", "osnet-x0.25"])
def test_the_ibn_form_has_imagenet_weights_at_full_width_only(name: str) -> None:
    with pytest.raises(ValueError, match=r"found ibn = true, which has ImageNet weights in osnet-x1\.0 only"):
        backbones[name](ibn=True)
    osnet = backbones[name](ibn=True, weights="none").build(32, 32)
    assert isinstance(osnet.conv1.bn, nn.InstanceNorm2d)
