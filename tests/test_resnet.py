"""ResNet and ResNeXt against torchvision's, and with what is added to them."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as Reference

from reidcore.builtin.backbones import _IMAGENET, reidcore_backbones
from reidcore.builtin.modules.resnet import ResNet
from reidcore.errors import ContractError, ReidError
from reidcore.layers import InstanceBatchNorm, NonLocal

CONFIGS = {component.name: component.config for component in reidcore_backbones() if component.name.startswith("resne")}
STAGES = ("stage1", "stage2", "stage3", "stage4")
EVERYTHING: dict[str, Any] = {"ibn": "a", "se": True, "non_local": [0, 1, 2, 1]}


def build(name: str, height: int, width: int, **options: Any) -> ResNet:
    return CONFIGS[name](weights="none", **options).build(height, width)


def reference(name: str) -> nn.Module:
    """torchvision's network of this name, or made of its parts."""
    if name == "resnext101-32x4d":
        return Reference(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    return torchvision.models.get_model(name.replace("-", "_"))


def randomized(model: nn.Module) -> Any:
    """Give the norm layers statistics and weights that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.0)
    return model


def calibrated(backbone: ResNet, images: Tensor) -> ResNet:
    """Give the batch norms other weights, and the statistics of `images`, so that no map overflows."""
    randomized(backbone)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(images, ["stage4"])
    return backbone.eval()


def reference_maps(model: Any, images: Tensor) -> dict[str, Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    maps = {}
    for number in (1, 2, 3, 4):
        x = getattr(model, f"layer{number}")(x)
        maps[f"stage{number}"] = x
    return maps


def without_fc(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50-32x4d"])
@torch.no_grad()
def test_maps_equal_torchvisions_for_the_same_state_dict(name: str) -> None:
    torch.manual_seed(0)
    theirs = randomized(reference(name)).eval()
    ours = build(name, 48, 32, last_stride=2).eval()
    ours.load_state_dict(without_fc(theirs), strict=True)
    images = torch.randn(2, 3, 48, 32)
    maps, expected = ours(images, STAGES), reference_maps(theirs, images)
    for stage in STAGES:
        assert torch.equal(maps[stage], expected[stage])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_network_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(name, 64, 32).state_dict(), without_fc(reference(name))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("size", [(64, 32), (63, 37)])
@torch.no_grad()
def test_the_stems_pooling_may_round_up_without_padding(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = randomized(reference("resnet18")).eval()
    theirs.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    ours = build("resnet18", *size, last_stride=2, stem_pool="ceil").eval()
    ours.load_state_dict(without_fc(theirs))
    images = torch.randn(1, 3, *size)
    assert torch.equal(ours(images, ["stage4"])["stage4"], reference_maps(theirs, images)["stage4"])


@torch.no_grad()
def test_the_last_stride_changes_only_the_step_of_the_last_stage() -> None:
    torch.manual_seed(0)
    coarse, fine = (build("resnet18", 64, 32, last_stride=stride).eval() for stride in (2, 1))
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 64, 32)
    a, b = coarse(images, STAGES), fine(images, STAGES)
    assert torch.equal(a["stage3"], b["stage3"])
    assert (a["stage4"].shape[2:], b["stage4"].shape[2:]) == ((2, 1), (4, 2))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem_stride", [2, 4])
@pytest.mark.parametrize("stem_pool", ["pad1", "ceil"])
@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(33, 17), (63, 50), (5, 6)])
@torch.no_grad()
def test_declared_shapes_are_the_real_ones(
    name: str, stem_stride: Any, stem_pool: Any, last_stride: Any, height: int, width: int
) -> None:
    backbone = build(
        name, height, width, base=16, stem_stride=stem_stride, stem_pool=stem_pool, last_stride=last_stride
    )
    assert [name for name in backbone.shapes if not name.endswith(".preact")] == [
        *("stage1", "stage2", "stage3.0", "stage3", "stage4")
    ]
    maps = backbone.eval()(torch.randn(1, 3, height, width), list(backbone.shapes))
    for stage, shape in backbone.shapes.items():
        assert maps[stage].shape == (1, shape.channels, shape.height, shape.width)
        if stage.endswith(".preact"):
            assert shape.signed
            assert torch.equal(maps[stage].relu(), maps[stage.removesuffix(".preact")])
        else:
            assert not shape.signed and maps[stage].min() >= 0


@pytest.mark.parametrize(
    ("want", "computed"),
    [
        (("stage1",), ["layer1.0", "layer1.1"]),
        (("stage2", "stage1"), ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
        (("stage3.0",), ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"]),
        ((), []),
    ],
)
@torch.no_grad()
def test_only_what_is_wanted_is_computed(want: tuple[str, ...], computed: list[str]) -> None:
    backbone = build("resnet18", 32, 32).eval()
    ran: list[str] = []
    for name, module in backbone.named_modules():
        if name.startswith("layer") and name.count(".") == 1:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    assert set(backbone(torch.randn(1, 3, 32, 32), want)) == set(want)
    assert ran == computed


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"ibn": "b"}], ids=["plain", "everything", "ibn b"])
@torch.no_grad()
def test_the_tail_continues_where_the_map_ends(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    backbone = calibrated(build("resnet18", 32, 32, **options), images)
    maps = backbone(images, list(backbone.shapes))
    assert maps["stage4"].isfinite().all()
    for stage in backbone.shapes:
        assert torch.equal(backbone.tail(stage)(maps[stage]), maps["stage4"])


def test_the_tail_is_a_copy() -> None:
    backbone = build("resnet18", 32, 32, **EVERYTHING)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    tail = backbone.tail("stage3")
    for parameter in tail.parameters():
        nn.init.constant_(parameter, 7)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_the_only_strides_after_the_first_block_of_stage_3_are_the_last_stages() -> None:
    for last_stride, strided in ((1, 0), (2, 2)):
        tail = build("resnet50", 64, 32, last_stride=last_stride).tail("stage3.0")
        strides = [module.stride for module in tail.modules() if isinstance(module, nn.Conv2d)]
        assert strides.count((2, 2)) == strided and len(tail) == 8


def released_keys(name: str, ibn: str) -> set[str]:
    """The names in IBN-Net's files, from torchvision's."""
    blocks = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 23, 3)
    keys = set(without_fc(reference(name)))
    if ibn == "a":
        for number in (1, 2, 3):
            for index in range(blocks[number - 1]):
                prefix = f"layer{number}.{index}.bn1."
                mine = {key for key in keys if key.startswith(prefix)}
                keys -= mine
                keys |= {key.replace(prefix, f"{prefix}BN.") for key in mine}
                keys |= {f"{prefix}IN.weight", f"{prefix}IN.bias"}
    else:
        keys -= {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
        for number in (1, 2):
            keys |= {f"layer{number}.{blocks[number - 1] - 1}.IN.{part}" for part in ("weight", "bias")}
    return keys


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "resnext101-32x4d"])
@pytest.mark.parametrize("ibn", ["a", "b"])
def test_instance_norms_are_where_and_called_as_in_the_released_networks(name: str, ibn: Any) -> None:
    with torch.device("meta"):
        assert set(build(name, 64, 32, ibn=ibn).state_dict()) == released_keys(name, ibn)


def test_squeeze_excitation_is_called_as_in_the_released_network() -> None:
    with torch.device("meta"):
        plain, se = (build("resnet101", 64, 32, ibn="a", se=se).state_dict() for se in (False, True))
    added = {key: tuple(value.shape) for key, value in se.items() if key not in plain}
    assert len(added) == 2 * 33
    assert added["layer1.0.se.fc.0.weight"] == (16, 256) and added["layer1.0.se.fc.2.weight"] == (256, 16)
    assert added["layer4.2.se.fc.0.weight"] == (128, 2048)


@torch.no_grad()
def test_a_block_excites_its_branch_and_norms_the_sum() -> None:
    torch.manual_seed(0)
    backbone = randomized(build("resnet50", 32, 32, ibn="b", se=True)).eval()
    block, x = backbone.layer2[3], torch.randn(2, 512, 4, 4)
    branch = block.bn1(block.conv1(x)).relu()
    branch = block.bn3(block.conv3(block.bn2(block.conv2(branch)).relu()))
    scale = torch.sigmoid(block.se.fc[2](block.se.fc[0](branch.mean((2, 3))).relu()))
    total = x + branch * scale[:, :, None, None]
    unit = (total - total.mean((2, 3), keepdim=True)) / (total.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (unit * block.IN.weight[:, None, None] + block.IN.bias[:, None, None]).relu()
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_ibn_a_replaces_the_first_norm_of_the_blocks_of_three_stages() -> None:
    torch.manual_seed(0)
    theirs, ours = reference("resnet18"), build("resnet18", 64, 32, last_stride=2, ibn="a")
    for number in (1, 2, 3):
        for block in getattr(theirs, f"layer{number}"):
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
    randomized(theirs).eval()
    ours.load_state_dict(without_fc(theirs))
    images = torch.randn(2, 3, 64, 32)
    assert torch.equal(ours.eval()(images, ["stage4"])["stage4"], reference_maps(theirs, images)["stage4"])


def test_instance_norms_refuse_maps_of_one_position() -> None:
    message = (
        "backbone.ibn: found maps of a single position in stage 3 for images of 16x16; "
        'instance norms expect more: take larger images, or write ibn = "none"'
    )
    with pytest.raises(ContractError) as caught:
        build("resnet18", 16, 16, ibn="a")
    assert str(caught.value) == message
    build("resnet18", 16, 16, ibn="b")(torch.randn(2, 3, 16, 16), ["stage4"])
    build("resnet18", 17, 16, ibn="a")(torch.randn(2, 3, 17, 16), ["stage4"])


@torch.no_grad()
def test_non_local_blocks_follow_the_last_blocks_of_their_stage() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 32)
    backbone = calibrated(build("resnet50", 64, 32, non_local=[0, 2, 3, 0]), images)
    assert [len(getattr(backbone, f"NL_{number}")) for number in (1, 2, 3, 4)] == [0, 2, 3, 0]
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    x = backbone.layer1(x)
    x = backbone.layer2[1](backbone.layer2[0](x))
    x = backbone.NL_2[0](backbone.layer2[2](x))
    x = backbone.NL_2[1](backbone.layer2[3](x))
    stage2 = x
    x = backbone.layer3[2](backbone.layer3[1](backbone.layer3[0](x)))
    for index in range(3):
        x = backbone.NL_3[index](backbone.layer3[3 + index](x))
    maps = backbone(images, ["stage2", "stage3", "stage4"])
    assert torch.equal(maps["stage2"], stage2) and torch.equal(maps["stage3"], x)
    assert torch.equal(maps["stage4"], backbone.layer4(x))


def test_non_local_blocks_take_half_of_the_channels_unless_told() -> None:
    for channels, inner in ((None, 512), (1, 1)):
        with torch.device("meta"):
            block = build("resnet50", 64, 32, non_local=[0, 0, 1, 0], non_local_channels=channels).NL_3[0]
        assert isinstance(block, NonLocal)
        assert {key: tuple(value.shape) for key, value in block.named_parameters()} == {
            **{f"{part}.weight": (inner, 1024, 1, 1) for part in ("g", "theta", "phi")},
            **{f"{part}.bias": (inner,) for part in ("g", "theta", "phi")},
            "W.0.weight": (1024, inner, 1, 1),
            **{key: (1024,) for key in ("W.0.bias", "W.1.weight", "W.1.bias")},
        }


@torch.no_grad()
def test_non_local_blocks_change_no_published_network_at_first() -> None:
    torch.manual_seed(0)
    plain, more = build("resnet18", 32, 32), build("resnet18", 32, 32, non_local=[1, 1, 2, 1])
    more.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    a, b = plain(images, STAGES), more(images, STAGES)
    assert all(torch.equal(a[stage], b[stage]) for stage in STAGES)


@pytest.mark.parametrize(
    ("non_local", "signed"),
    [
        ([0, 2, 3, 0], {"stage2", "stage3"}),
        ([0, 0, 0, 1], {"stage4"}),
        ([0, 0, 6, 0], {"stage3.0", "stage3"}),
        ([3, 0, 0, 0], {"stage1"}),
    ],
)
def test_a_map_that_ends_in_a_non_local_block_is_signed(non_local: list[int], signed: set[str]) -> None:
    with torch.device("meta"):
        shapes = build("resnet50", 64, 32, non_local=non_local).shapes
    assert {name for name, shape in shapes.items() if shape.signed and not name.endswith(".preact")} == signed


def test_residual_branches_start_at_nothing() -> None:
    for name in ("resnet18", "resnet50"):
        backbone = build(name, 32, 32, se=True)
        x = torch.rand(2, backbone.shapes["stage1"].channels, 4, 4)
        assert torch.equal(backbone.layer1[1](x), x)


@pytest.mark.parametrize("options", [EVERYTHING, {"ibn": "b", "non_local_channels": 1, "non_local": [0, 0, 1, 0]}])
def test_layout_copies_and_bfloat16_change_the_maps_by_rounding_only(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    backbone = calibrated(build("resnet18", 32, 32, **options).double(), images)
    expected = backbone(images, ["stage4"])["stage4"]
    last = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    found = last(images.to(memory_format=torch.channels_last), ["stage4"])["stage4"]
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = last.float()(images.float(), ["stage4"])["stage4"]
    assert rounded.dtype == torch.bfloat16
    assert torch.cosine_similarity(rounded.double().flatten(), expected.flatten(), dim=0) > 0.99
    rounded.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in last.parameters())


def test_base_scales_every_stage() -> None:
    backbone = build("resnet18", 32, 32, base=16)
    maps = backbone(torch.zeros(2, 3, 32, 32), ("stage1", "stage4"))
    assert [maps[name].shape[1] for name in ("stage1", "stage4")] == [16, 128]


NO_WEIGHTS = "of which there are no ImageNet weights"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"base": 16}, f'found base = 16, {NO_WEIGHTS}; write weights = "none"'),
        ("resnet18", {"stem_stride": 4}, f'found stem_stride = 4, {NO_WEIGHTS}; write weights = "none"'),
        (
            "resnet152",
            {"ibn": "a"},
            f'found ibn = "a" without se, {NO_WEIGHTS} of resnet152; write weights = "none", '
            'or choose ibn = "none" without se',
        ),
        (
            "resnet101",
            {"se": True},
            f'found ibn = "none" with se, {NO_WEIGHTS} of resnet101; write weights = "none", '
            'or choose ibn = "none" without se or ibn = "a" without se or ibn = "a" with se or ibn = "b" without se',
        ),
        (
            "resnext101-32x4d",
            {},
            f'found ibn = "none" without se, {NO_WEIGHTS} of resnext101-32x4d; write weights = "none", '
            'or choose ibn = "a" without se',
        ),
        (
            "resnet18",
            {"non_local": (0, 2, 3, 0)},
            "found 3 non-local blocks in stage 3 of resnet18, which has 2 blocks; expected at most 2",
        ),
        (
            "resnet18",
            {"non_local": (0, 0, 0, 2), "stages": 3},
            "found 2 non-local blocks in stage 4, but stages = 3; expected 0",
        ),
        ("resnext50-32x4d", {"base": 24, "weights": "none"}, "found base = 24; expected a multiple of 16"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        CONFIGS[name](**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("name", "ibn", "se"), _IMAGENET)
def test_every_published_combination_is_accepted_and_its_file_has_a_hash(name: str, ibn: Any, se: bool) -> None:
    config = CONFIGS[name](ibn=ibn, se=se, non_local=[0, 1, 1, 0], last_stride=2, stem_pool="ceil")
    assert config.weights == "imagenet"
    file = Path(_IMAGENET[name, ibn, se])
    assert file.suffix == ".pth" and len(bytes.fromhex(file.stem.rpartition("-")[2])) == 4


def test_torchvisions_files_are_of_its_first_version() -> None:
    plain = {name: url for (name, ibn, se), url in _IMAGENET.items() if (ibn, se) == ("none", False)}
    assert plain == {name: get_model_weights(name.replace("-", "_"))["IMAGENET1K_V1"].url for name in plain}


def test_the_file_of_the_combination_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    config = CONFIGS["resnet18"](ibn="a", non_local=[0, 0, 1, 0])
    with pytest.raises(ReidError, match=r"put the file resnet18_ibn_a-2f571257\.pth into .*checkpoints"):
        config.build(32, 32)
    published = randomized(build("resnet18", 32, 32, ibn="a")).state_dict()
    file = tmp_path / "checkpoints/resnet18_ibn_a.pth"
    torch.save({**published, "fc.weight": torch.zeros(1000, 512)}, file)
    file = file.rename(f"{file.parent}/{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    monkeypatch.setitem(_IMAGENET, ("resnet18", "a", False), f"https://example.org/{file.name}")
    backbone = config.build(32, 32)
    assert torch.equal(backbone.layer1[0].bn1.IN.weight, published["layer1.0.bn1.IN.weight"])


@torch.no_grad()
def test_stages_that_are_not_built_take_no_parameters_and_their_weights_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(randomized(reference("resnet18")).state_dict(), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    short = CONFIGS["resnet18"](weights=weights, stages=3, last_stride=2).build(32, 32).eval()
    whole = CONFIGS["resnet18"](weights=weights).build(32, 32).eval()
    assert tuple(short.shapes)[-3:] == ("stage3.0", "stage3.preact", "stage3")
    assert not any(name.startswith("layer4") for name in short.state_dict())
    images = torch.rand(2, 3, 32, 32)
    maps = short(images, ("stage2", "stage3"))
    assert torch.equal(maps["stage3"], whole(images, ("stage3",))["stage3"])
    assert torch.equal(short.tail("stage2").eval()(maps["stage2"]), maps["stage3"])
    assert len(short.tail("stage3")) == 0


def test_the_last_stride_is_that_of_the_last_stage_which_is_built() -> None:
    coarse, fine = (build("resnet18", 64, 32, stages=3, last_stride=stride) for stride in (2, 1))
    names = ("stage1", "stage2", "stage3.0", "stage3")
    sizes = [[(each.shapes[name].height, each.shapes[name].width) for name in names] for each in (coarse, fine)]
    assert sizes == [[(16, 8), (8, 4), (4, 2), (4, 2)], [(16, 8), (8, 4), (8, 4), (8, 4)]]
    for stages, stride, expected in ((3, 1, (2, 256, 8, 4)), (1, 2, (2, 64, 8, 4)), (1, 1, (2, 64, 16, 8))):
        last = f"stage{stages}"
        backbone = build("resnet18", 64, 32, stages=stages, last_stride=stride)
        assert backbone(torch.zeros(2, 3, 64, 32), (last,))[last].shape == expected
