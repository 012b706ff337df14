"""timm's models as backbones: their maps against timm's own, weights, tails, and the contract of backbones."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from reid_timm import Timm
from reid_timm.backbone import TimmBackbone
from reidcore.catalog import discover
from reidcore.errors import ContractError, ReidError
from reidcore.testing import contract

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
assert RECIPES

# models with stages, and whether maps come out of a ReLU
STAGES = {
    "resnet10t": "rrrr",
    "convnext_atto": "ssss",
    "mobilenetv3_small_050": "ssss",
    "efficientnet_lite0": "sssr",
    "regnety_002": "rrrr",
    "test_nfnet": "ssss",
    "resnetv2_18": "sssr",
    "test_mambaout": "ssss",  # channels last, as the next one
    "swin_tiny_patch4_window7_224": "ssss",
    "hiera_tiny_224": "ssss",  # which ends in tokens
}
LARGE = ("swin_tiny_patch4_window7_224", "hiera_tiny_224")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in STAGES]
# models of one resolution: pixels of a patch, tokens that are no patches, whether one is a class token
TOKENS = {
    "vit_tiny_patch16_224": (16, 1, True),
    "test_vit": (16, 1, True),
    "vit_small_patch14_reg4_dinov2": (14, 5, True),
    "vit_small_patch16_dinov3": (16, 5, True),
    "eva02_tiny_patch14_224": (14, 1, True),
    "test_vit_relpos": (16, 0, False),
    "test_vit2": (16, 1, False),
}

test_contract_of_a_convolutional_model = contract("timm", options={"timm": {"model": "test_resnet"}})


test_contract_of_a_transformer = contract("timm", options={"timm": {"model": "test_vit", "drop_path": 0.1}})


@cache
def built(name: str, height: int, width: int, **options) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name, height, width, **options).eval()


def _images(backbone: TimmBackbone) -> Tensor:
    return torch.randn(2, 3, *backbone.size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _maps(backbone: TimmBackbone) -> dict[str, Tensor]:
    return dict(backbone(_images(backbone), tuple(backbone.shapes)))


def _like(backbone: TimmBackbone, **options) -> torch.nn.Module:
    """Return timm's own model with the same weights."""
    if timm.get_pretrained_cfg(backbone.name).fixed_input_size:
        options["img_size"] = backbone.size
    theirs = timm.create_model(backbone.name, **options).eval()
    table = {key.replace(".", "_"): value for key, value in backbone.model.state_dict().items()}
    state = {key: key.removeprefix("model.").replace(".", "_") for key in theirs.state_dict()}
    head = {key for key, flat in state.items() if flat not in table}
    assert not options.get("features_only") or not head
    theirs.load_state_dict({key: table[flat] for key, flat in state.items() if key not in head}, strict=False)
    return theirs


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_those_of_features_only_and_the_last_is_what_is_pooled(name: str) -> None:
    backbone = built(name, 96, 64)
    maps = _maps(backbone)
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4"]
    with torch.no_grad():
        theirs = _like(backbone, features_only=True)(_images(backbone))[-4:]
        final = _like(backbone).forward_features(_images(backbone))
    if getattr(backbone.model, "output_fmt", "") == "NHWC":
        theirs, final = [x.permute(0, 3, 1, 2) for x in theirs], final.permute(0, 3, 1, 2)
    for (stage, found), expected in zip(list(maps.items())[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(found, expected, msg=stage)
    if final.ndim == 3:
        final = final.transpose(1, 2).unflatten(2, maps["stage4"].shape[2:])
    torch.testing.assert_close(maps["stage4"], final)


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_the_published_shapes_and_signs(name: str) -> None:
    backbone = built(name, 96, 64)
    for (stage, found), sign in zip(_maps(backbone).items(), STAGES[name], strict=True):
        shape = backbone.shapes[stage]
        assert tuple(found.shape[1:]) == (shape.channels, shape.height, shape.width)
        assert shape.signed == (sign == "s")
        assert (found.min() < 0) == shape.signed, stage


@pytest.mark.parametrize(("name", "layout"), TOKENS.items())
def test_tokens_lie_where_their_patches_did(name: str, layout: tuple[int, int, bool]) -> None:
    patch, others, token = layout
    backbone = built(name, 4 * patch, 2 * patch)
    maps = _maps(backbone)
    theirs = _like(backbone)
    with torch.no_grad():
        tokens = theirs.forward_features(_images(backbone))
        tokens = theirs.fc_norm(tokens) if getattr(theirs, "fc_norm", None) else tokens
    assert tokens.shape[1] == others + 8
    assert list(maps) == (["patches", "token"] if token else ["patches"])
    for row in range(4):
        for column in range(2):
            torch.testing.assert_close(maps["patches"][:, :, row, column], tokens[:, others + 2 * row + column])
    if token:
        torch.testing.assert_close(maps["token"].flatten(1), tokens[:, 0])
    for key, shape in backbone.shapes.items():
        assert maps[key].shape[1:] == (shape.channels, shape.height, shape.width) and shape.signed


@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos", "test_convnext", "mobilenetv3_small_050"])
def test_nothing_is_left_that_no_map_needs(name: str) -> None:
    backbone = TimmBackbone(name, 64, 32)
    total = sum(x.square().sum() for x in backbone(torch.randn(2, 3, 64, 32), tuple(backbone.shapes)).values())
    total.backward()
    assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]


def test_images_are_normalised_as_the_weights_want_it() -> None:
    settings = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    with torch.device("meta"):
        backbone = TimmBackbone("vit_tiny_patch16_224.augreg_in21k", 32, 32)
    assert backbone.mean == settings.mean == (0.5, 0.5, 0.5)
    assert backbone.std == settings.std


# tails


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_lite0", "regnety_002", "test_nfnet"])
def test_the_tail_is_a_copy_that_computes_the_last_map(name: str) -> None:
    backbone = built(name, 96, 64)
    maps = _maps(backbone)
    for after in list(maps)[:-1]:
        tail = backbone.tail(after).eval()
        with torch.no_grad():
            torch.testing.assert_close(tail(maps[after]), maps["stage4"])
        assert next(tail.parameters(), None) is not None
        assert not {id(p) for p in tail.parameters()} & {id(p) for p in backbone.parameters()}


def test_nothing_follows_the_last_maps() -> None:
    assert not len(built("resnet10t", 96, 64).tail("stage4"))
    assert not len(built("test_vit", 64, 32).tail("patches"))


def test_where_there_is_no_tail_it_says_so() -> None:
    with pytest.raises(ContractError, match="what follows map 'stage3' of test_mambaout is no sequence of modules"):
        built("test_mambaout", 96, 64).tail("stage3")


@pytest.mark.parametrize("name", ["test_convnext", "resnet18", "test_resnet"])
def test_the_multiple_granularity_network_branches_from_stage_3(name: str) -> None:
    backbone = TimmBackbone(name, 128, 64)
    aggregator = discover().build("aggregator", "mgn", {"source": "stage3", "dim": 8}, backbone)
    views = aggregator(backbone(torch.randn(2, 3, 128, 64), ("stage3",))).vectors
    assert len(views) == 8 and all(view.shape == (2, 8) for view in views.values())


# weights


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of `vit_tiny_patch16_224` as it is, with a classifier."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), file)
    return file


def test_a_file_of_the_square_model_fits_another_size_as_timm_fits_it(vit_file: Path) -> None:
    ours = TimmBackbone("vit_tiny_patch16_224", 96, 32, weights=str(vit_file)).eval()
    theirs = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": str(vit_file)}, img_size=(96, 32)
    ).eval()
    images = torch.randn(1, 3, 96, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images, ("token",))["token"].flatten(1), theirs.forward_features(images)[:, 0], rtol=0, atol=0
        )
    assert not any(key.startswith("head") for key in ours.model.state_dict())


def test_dinov2_at_518x518_is_read_at_252x126(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    torch.manual_seed(1)
    source = timm.create_model(name)
    assert source.patch_embed.img_size == (518, 518)
    torch.save(source.state_dict(), tmp_path / "dinov2.pth")
    backbone = TimmBackbone(name, 252, 126, weights=str(tmp_path / "dinov2.pth"))
    assert (backbone.shapes["patches"].height, backbone.shapes["patches"].width) == (18, 9)
    expected = resample_abs_pos_embed(source.pos_embed, [18, 9], [37, 37], num_prefix_tokens=1)
    torch.testing.assert_close(backbone.model.pos_embed, expected)
    torch.testing.assert_close(backbone.model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)


def test_weights_of_another_classifier_fit(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "seven.safetensors")
    TimmBackbone("test_resnet", 64, 32, weights=str(tmp_path / "seven.safetensors"))


def test_a_file_that_does_not_fit_is_refused_with_the_names(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["layer9.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ReidError, match=r"other\.pth does not fit test_resnet") as caught:
        TimmBackbone("test_resnet", 64, 32, weights=str(tmp_path / "other.pth"))
    assert 'Missing key(s) in state_dict: "layer1.0.conv1.weight"' in str(caught.value)
    assert 'Unexpected key(s) in state_dict: "layer9.weight"' in str(caught.value)


def test_a_file_of_another_model_is_refused(vit_file: Path) -> None:
    with pytest.raises(ReidError, match=r"vit\.safetensors does not fit test_convnext"):
        TimmBackbone("test_convnext", 64, 32, weights=str(vit_file))


def test_a_file_that_is_not_there_is_missed_without_reading_any(vit_file: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        TimmBackbone("vit_tiny_patch16_224", 64, 32, weights=str(vit_file))
        (tmp_path / "bad.safetensors").write_text("no tensors")
        TimmBackbone("vit_tiny_patch16_224", 64, 32, weights=str(tmp_path / "bad.safetensors"))
        with pytest.raises(ReidError, match=r"found 'none\.pth', which is no file; expected 'pretrained', 'none' or a"):
            TimmBackbone("vit_tiny_patch16_224", 64, 32, weights="none.pth")


def test_without_a_connection_it_says_which_file_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ReidError, match=r"backbone\.weights: cannot load the weights of test_resnet") as caught:
        TimmBackbone("test_resnet", 64, 32, weights="pretrained")
    file = "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert f'fetch {file} elsewhere and write weights = "FILE"' in str(caught.value)


# what is refused


def test_an_unknown_model_has_near_names() -> None:
    with pytest.raises(ReidError, match=r"timm .* has no model 'convnext_tini'; did you mean 'convnext_tiny'"):
        TimmBackbone("convnext_tini", 64, 32)


def test_an_unknown_tag_has_the_known_ones() -> None:
    with pytest.raises(
        ReidError, match="no weights 'lvd' of vit_small_patch14_dinov2; write 'vit_small_patch14_dinov2'"
    ):
        TimmBackbone("vit_small_patch14_dinov2.lvd", 252, 126)


def test_a_size_that_patches_do_not_fill_has_one_that_they_do() -> None:
    with pytest.raises(ContractError, match=r"found an input of 256x128 pixels.*multiples of 14.*such as 252 and 126"):
        TimmBackbone("vit_small_patch14_dinov2", 256, 128)


def test_a_size_that_a_model_refuses_is_the_users_to_change() -> None:
    with pytest.raises(ContractError, match=r"Model only handles square inputs.*change the input size"):
        TimmBackbone("nest_tiny", 256, 128)
    with pytest.raises(ContractError, match="efficientformer_l1 gives no maps of images of 256x128 pixels"):
        TimmBackbone("efficientformer_l1", 256, 128)


def test_the_output_stride() -> None:
    shape = TimmBackbone("test_convnext", 96, 64, output_stride=16).shapes["stage4"]
    assert (shape.height, shape.width) == (6, 4)
    with pytest.raises(ContractError, match="cannot build test_vit with output_stride = 16"):
        TimmBackbone("test_vit", 64, 32, output_stride=16)


def test_drop_path_rises_to_the_last_block() -> None:
    blocks = TimmBackbone("test_vit", 64, 32, drop_path=0.2).model.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.2) and rates == sorted(rates)


def test_its_options_reach_the_backbone() -> None:
    with torch.device("meta"):
        backbone = Timm(model="test_convnext", weights="none", drop_path=0.1, output_stride=8).build(64, 32)
    assert (backbone.shapes["stage4"].height, backbone.shapes["stage4"].width) == (8, 4)
    assert any(getattr(module, "drop_prob", 0) for module in backbone.modules())


# recipes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_recipes_fit(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from reidcore.cli import main

    assert main(["check", str(recipe), "--build"]) == 0, capsys.readouterr().err


def test_listing_it_imports_neither_torch_nor_timm() -> None:
    code = "import sys, reid_timm; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
