"""ResNeSt by itself: its options and their mistakes, its maps, its weights."""

import copy
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reid_resnest import reidcore_backbones
from reid_resnest.network import ResNeSt, SplitAttention
from reidcore.errors import ContractError, ReidError
from reidcore.layers import InstanceBatchNorm, InstanceNorm

CONFIGS = {component.name: component.config for component in reidcore_backbones()}
STAGES = ("stage1", "stage2", "stage3", "stage4")
EVERYTHING: dict[str, Any] = {"ibn": "a", "non_local": [0, 1, 2, 1]}


def build(height: int = 64, width: int = 32, *, name: str = "resnest50", **options: Any) -> ResNeSt:
    """A network with an eighth of the published channels, unless told."""
    network: ResNeSt = CONFIGS[name](**{"weights": "none", "base": 8, **options}).build(height, width)
    return network


def calibrated(backbone: ResNeSt, images: Tensor) -> ResNeSt:
    """Give all norms other weights, so that no branch is at nothing, and the batch norms the statistics of `images`."""
    for module in backbone.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(images, ["stage4"])
    return backbone.eval()


def mistake(**options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        CONFIGS["resnest50"](**options)
    return str(caught.value)


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ibn": "a"},
            'found ibn = "a", of which there are no ImageNet weights; write weights = "none", or ibn = "none"',
        ),
        ({"radix": 4}, 'found radix = 4, of which there are no ImageNet weights; write weights = "none", or radix = 2'),
        ({"base": 32}, 'found base = 32, of which there are no ImageNet weights; write weights = "none", or base = 64'),
        ({"base": 10, "radix": 4}, "found base = 10 with radix = 4; expected a multiple of 4"),
        ({"non_local": (0, 5, 0, 0)}, "in stage 2 of resnest50, which has 4 blocks; expected at most 4"),
        (
            {"non_local": (0, 0, 0, 1), "stages": 3},
            "found 1 non-local blocks in stage 4, but stages = 3; expected 0",
        ),
    ],
)
def test_a_mistake_says_what_to_write(options: dict[str, Any], message: str) -> None:
    assert mistake(**options).endswith(message)


@pytest.mark.parametrize("options", [{}, {"non_local": (0, 2, 3, 0)}, {"stages": 3}, {"last_stride": 2}])
def test_the_published_weights_go_with_what_changes_none_of_them(options: dict[str, Any]) -> None:
    CONFIGS["resnest50"](weights="imagenet", **options)


# split attention


@pytest.mark.parametrize("radix", [1, 2, 4])
@torch.no_grad()
def test_split_attention_weighs_the_splits_of_each_channel(radix: int) -> None:
    torch.manual_seed(0)
    part = SplitAttention(8, radix, dilation=1).double()
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64)
    part(x)  # moves running statistics
    part.eval()
    splits = [
        torch.relu(
            torch.batch_norm(
                torch.conv2d(
                    x[:, 8 // radix * r : 8 // radix * (r + 1)],
                    part.conv.weight[8 * r : 8 * (r + 1)],
                    padding=1,
                ),
                *(getattr(part.bn0, name)[8 * r : 8 * (r + 1)] for name in ("weight", "bias")),
                *(getattr(part.bn0, name)[8 * r : 8 * (r + 1)] for name in ("running_mean", "running_var")),
                False,
                0.1,
                1e-5,
                False,
            )
        )
        for r in range(radix)
    ]
    expected = torch.zeros(3, 8, 5, 4, dtype=torch.float64)
    for image in range(3):
        means = torch.stack([sum(split[image, c].mean() for split in splits) for c in range(8)])
        hidden = part.fc1.weight[:, :, 0, 0] @ means + part.fc1.bias
        hidden = (hidden - part.bn1.running_mean) / (part.bn1.running_var + 1e-5).sqrt()
        scores = part.fc2.weight[:, :, 0, 0] @ hidden.relu() + part.fc2.bias
        for c in range(8):
            total = sum(scores[8 * r + c].exp() for r in range(radix)) if radix > 1 else 1 + scores[c].exp()
            for r in range(radix):
                expected[image, c] += scores[8 * r + c].exp() / total * splits[r][image, c]
    torch.testing.assert_close(part(x), expected)


# maps


@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(33, 17), (63, 50), (5, 6)])
@torch.no_grad()
def test_declared_shapes_are_the_real_ones(height: int, width: int, stages: int, last_stride: Any) -> None:
    backbone = build(height, width, stages=stages, last_stride=last_stride).eval()
    expected = [name for name in ("stage1", "stage2", "stage3.0", "stage3", "stage4") if int(name[5]) <= stages]
    assert [name for name in backbone.shapes if not name.endswith(".preact")] == expected
    maps = backbone(torch.randn(1, 3, height, width), list(backbone.shapes))
    for name, shape in backbone.shapes.items():
        assert maps[name].shape == (1, shape.channels, shape.height, shape.width)
        if name.endswith(".preact"):
            assert shape.signed and torch.equal(maps[name].relu(), maps[name.removesuffix(".preact")])
        else:
            assert not shape.signed and maps[name].min() >= 0


def test_the_published_network_offers_maps_of_256_to_2048_channels() -> None:
    with torch.device("meta"):
        shapes = build(256, 128, base=64).shapes
    assert [(s.channels, s.height, s.width) for s in (shapes[stage] for stage in STAGES)] == [
        (256, 64, 32),
        (512, 32, 16),
        (1024, 16, 8),
        (2048, 16, 8),
    ]


@pytest.mark.parametrize(
    ("want", "computed"),
    [(("stage1",), 3), (("stage2", "stage1"), 7), (("stage3.0",), 8), (("stage4",), 16), ((), 0)],
)
@torch.no_grad()
def test_only_what_is_wanted_is_computed(want: tuple[str, ...], computed: int) -> None:
    backbone = build().eval()
    ran: list[nn.Module] = []
    for number in (1, 2, 3, 4):
        for block in getattr(backbone, f"layer{number}"):
            block.register_forward_hook(lambda module, *_: ran.append(module))
    assert set(backbone(torch.randn(1, 3, 64, 32), want)) == set(want)
    assert len(ran) == computed


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"ibn": "b"}], ids=["plain", "everything", "ibn b"])
@torch.no_grad()
def test_the_tail_continues_where_the_map_ends(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 32)
    backbone = calibrated(build(**options), images)
    maps = backbone(images, list(backbone.shapes))
    for name in backbone.shapes:
        tail = backbone.tail(name)
        assert torch.equal(tail(maps[name]), maps["stage4"])
        for parameter in tail.parameters():
            nn.init.constant_(parameter, 7)  # a copy: what follows is not changed
    assert torch.equal(backbone(images, ["stage4"])["stage4"], maps["stage4"])


@pytest.mark.parametrize(("stages", "dilated"), [(4, 4), (3, 3), (1, None)])
def test_a_last_stage_without_its_stride_is_dilated_from_its_second_block_on(stages: int, dilated: int | None) -> None:
    for last_stride in (1, 2):
        backbone = build(stages=stages, last_stride=last_stride)
        for number in range(1, stages + 1):
            found = [block.conv2.conv.dilation[0] for block in getattr(backbone, f"layer{number}")]
            wide = last_stride == 1 and number == dilated
            assert found == [1, *[2 if wide else 1] * (len(found) - 1)]


def test_residual_branches_start_at_nothing() -> None:
    backbone = build()
    x = torch.rand(2, 32, 4, 4)
    assert torch.equal(backbone.layer1[1](x), x)


@pytest.mark.parametrize("options", [EVERYTHING, {"ibn": "b", "radix": 4}, {"radix": 1}], ids=str)
@torch.no_grad()
def test_channels_last_and_bfloat16_are_kept_from_end_to_end(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 32, dtype=torch.float64)
    backbone = calibrated(build(**options).double(), images)
    expected = backbone(images, ["stage4"])["stage4"]
    last = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    found = last(images.to(memory_format=torch.channels_last), ["stage4"])["stage4"]
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = last.float()(images.float(), ["stage4"])["stage4"]
    assert rounded.dtype == torch.bfloat16
    assert rounded.is_contiguous(memory_format=torch.channels_last)


# instance norm


@pytest.mark.parametrize("name", ["resnest50", "resnest101"])
def test_ibn_a_is_in_the_first_norm_of_the_blocks_of_three_stages(name: str) -> None:
    with torch.device("meta"):
        backbone = build(name=name, ibn="a")
    found = {path for path, module in backbone.named_modules() if isinstance(module, InstanceBatchNorm)}
    blocks = CONFIGS[name].blocks
    assert found == {f"layer{number}.{index}.bn1" for number in (1, 2, 3) for index in range(blocks[number - 1])}


def test_ibn_b_ends_two_stages_and_the_stem() -> None:
    with torch.device("meta"):
        backbone = build(ibn="b")
    found = {path for path, module in backbone.named_modules() if isinstance(module, InstanceNorm)}
    assert found == {"bn1", "layer1.2.IN", "layer2.3.IN"}


@torch.no_grad()
def test_ibn_b_norms_the_sum_of_branch_and_shortcut() -> None:
    torch.manual_seed(0)
    backbone = calibrated(build(ibn="b"), torch.randn(8, 3, 64, 32))
    block, x = backbone.layer2[3], torch.rand(2, 64, 4, 4)
    total = x + block.bn3(block.conv3(block.conv2(block.bn1(block.conv1(x)).relu())))
    unit = (total - total.mean((2, 3), keepdim=True)) / (total.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (unit * block.IN.weight[:, None, None] + block.IN.bias[:, None, None]).relu()
    torch.testing.assert_close(block(x), expected)


def test_instance_norms_refuse_maps_of_one_position() -> None:
    with pytest.raises(ContractError) as caught:
        build(16, 16, ibn="a")
    assert str(caught.value) == (
        "backbone.ibn: found maps of a single position in stage 3 for images of 16x16; "
        'instance norms expect more: take larger images, or write ibn = "none"'
    )
    build(17, 16, ibn="a")(torch.randn(2, 3, 17, 16), ["stage4"])
    build(16, 16, ibn="b")(torch.randn(2, 3, 16, 16), ["stage4"])


# non-local blocks


@torch.no_grad()
def test_non_local_blocks_follow_the_last_blocks_of_their_stage() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 32)
    backbone = calibrated(build(non_local=[0, 2, 6, 0]), images)
    x = backbone.layer1(backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images)))))
    x = backbone.layer2[1](backbone.layer2[0](x))
    x = backbone.NL_2[0](backbone.layer2[2](x))
    stage2 = x = backbone.NL_2[1](backbone.layer2[3](x))
    for index in range(6):
        x = backbone.NL_3[index](backbone.layer3[index](x))
    maps = backbone(images, STAGES)
    assert torch.equal(maps["stage2"], stage2) and torch.equal(maps["stage3"], x)
    assert torch.equal(maps["stage4"], backbone.layer4(x))
    signed = {name for name, shape in backbone.shapes.items() if shape.signed and not name.endswith(".preact")}
    assert signed == {"stage2", "stage3.0", "stage3"}


def test_non_local_blocks_take_half_of_the_channels_unless_told() -> None:
    for channels, inner in ((None, 64), (1, 1)):
        with torch.device("meta"):
            block = build(non_local=[0, 0, 1, 0], non_local_channels=channels).NL_3[0]
        assert block.theta.weight.shape == (inner, 128, 1, 1)


@torch.no_grad()
def test_non_local_blocks_change_no_published_network_at_first() -> None:
    torch.manual_seed(0)
    plain, more = build(), build(non_local=[1, 1, 2, 1])
    more.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 32)
    found, expected = more(images, STAGES), plain(images, STAGES)
    assert all(torch.equal(found[stage], expected[stage]) for stage in STAGES)


# weights


def conv(name: str, out: int, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, channels, size, size)}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    numbers = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**numbers, f"{name}.num_batches_tracked": ()}


def published(name: str, base: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the authors' file, or of the same network with fewer channels."""
    blocks, stem = {"resnest50": ((3, 4, 6, 3), base // 2), "resnest101": ((3, 4, 23, 3), base)}[name]
    shapes = {
        **conv("conv1.0", stem, 3, 3),
        **norm("conv1.1", stem),
        **conv("conv1.3", stem, stem, 3),
        **norm("conv1.4", stem),
        **conv("conv1.6", 2 * stem, stem, 3),
        **norm("bn1", 2 * stem),
    }
    channels = 2 * stem
    for stage, count in enumerate(blocks):
        width = base << stage
        inner = max(width // 2, 32)
        for index in range(count):
            block = f"layer{stage + 1}.{index}"
            shapes |= {
                **conv(f"{block}.conv1", width, channels, 1),
                **norm(f"{block}.bn1", width),
                **conv(f"{block}.conv2.conv", 2 * width, width // 2, 3),
                **norm(f"{block}.conv2.bn0", 2 * width),
                **conv(f"{block}.conv2.fc1", inner, width, 1),
                f"{block}.conv2.fc1.bias": (inner,),
                **norm(f"{block}.conv2.bn1", inner),
                **conv(f"{block}.conv2.fc2", 2 * width, inner, 1),
                f"{block}.conv2.fc2.bias": (2 * width,),
                **conv(f"{block}.conv3", 4 * width, width, 1),
                **norm(f"{block}.bn3", 4 * width),
            }
            if index == 0:
                shapes |= {
                    **conv(f"{block}.downsample.1", 4 * width, channels, 1),
                    **norm(f"{block}.downsample.2", 4 * width),
                }
            channels = 4 * width
    return {**shapes, "fc.weight": (1000, channels), "fc.bias": (1000,)}


@pytest.fixture
def state() -> dict[str, Tensor]:
    """What a published file holds, for an eighth of the channels."""
    torch.manual_seed(1)
    return {key: torch.rand(shape) for key, shape in published("resnest50", 8).items()}


@pytest.mark.parametrize("name", ["resnest50", "resnest101"])
def test_a_network_has_the_published_parameters(name: str) -> None:
    with torch.device("meta"):
        found = {key: tuple(value.shape) for key, value in build(name=name, base=64).state_dict().items()}
    expected = {key: shape for key, shape in published(name).items() if not key.startswith("fc.")}
    assert found == expected


@pytest.mark.parametrize("stages", [4, 3])
def test_a_published_file_is_loaded(stages: int, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "resnest50.pth")
    backbone = build(stages=stages, non_local=[0, 1, 0, 0], weights=str(tmp_path / "resnest50.pth"))
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith("NL_")}
    assert "layer3.5.bn3.running_var" in own
    for key, value in own.items():
        assert torch.equal(value, state[key].to(value.dtype)), key


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        ({"layer2.0.conv2.fc1.bias": None}, {}, "it lacks layer2.0.conv2.fc1.bias"),
        ({"layer2.0.conv2.fc3.bias": torch.zeros(1)}, {}, "it has layer2.0.conv2.fc3.bias"),
        ({"conv1.6.weight": torch.zeros(8, 4, 1, 1)}, {}, "it has another shape of conv1.6.weight"),
        ({}, {"ibn": "a"}, "it lacks layer1.0.bn1.IN.weight"),
    ],
)
def test_a_file_that_does_not_fit_says_why(
    change: dict[str, Tensor | None],
    options: dict[str, Any],
    complaint: str,
    state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    file = tmp_path / "other.pth"
    torch.save({key: value for key, value in {**state, **change}.items() if value is not None}, file)
    with pytest.raises(ReidError) as caught:
        build(weights=str(file), **options)
    assert str(caught.value).startswith(f"backbone.weights: {file} does not fit resnest50: {complaint}")


@pytest.mark.parametrize(
    ("name", "begins"),
    [("resnest50", "528c19ca"), ("resnest101", "22405ba7"), ("resnest200", "75117900"), ("resnest269", "0cc87c48")],
)
def test_imagenet_without_a_network_names_the_file_and_the_folder(
    name: str, begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(ReidError) as caught:
        CONFIGS[name](stages=1).build(64, 32)
    assert str(caught.value) == (
        f"backbone.weights: cannot fetch https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
        f"{name}-{begins}.pth (<urlopen error no route to host>); put the file {name}-{begins}.pth into "
        f'{tmp_path / "hub" / "checkpoints"}, or write weights = "none" to start from random weights'
    )
