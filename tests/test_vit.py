"""The vision transformer against torchvision's, its cameras, and where its weights come from."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer as Reference

from reidcore.builtin.aggregators import Average, GeneralizedMean
from reidcore.builtin.modules.vit import VisionTransformer, load_vit_weights, resize_positions
from reidcore.builtin.vit import reidcore_backbones
from reidcore.errors import ContractError, ReidError

backbones = {component.name: component.config for component in reidcore_backbones()}
BOTH = ("patches", "token")


def small(height: int = 32, width: int = 32, layers: int = 2, **options: float) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(24, layers, 3, height, width, **options)  # type: ignore[arg-type]


def reference(size: int, layers: int, heads: int, dim: int) -> nn.Module:
    """Return torchvision's network with its classifier taken off: (B, 3, size, size) -> (B, dim)."""
    network = Reference(size, 16, layers, heads, dim, 4 * dim)
    network.heads = nn.Identity()
    return network.eval()


@pytest.mark.parametrize(("size", "layers", "heads", "dim"), [(224, 1, 12, 768), (48, 3, 2, 32)])
def test_the_token_equals_torchvisions_for_the_same_state_dict(size: int, layers: int, heads: int, dim: int) -> None:
    torch.manual_seed(0)
    theirs = reference(size, layers, heads, dim)
    ours = VisionTransformer(dim, layers, heads, size, size).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images, ["token"])["token"].flatten(1), theirs(images))
    # with gradients, as in training
    torch.testing.assert_close(ours(images, ["token"])["token"].flatten(1), theirs(images))


def test_the_patches_are_the_other_tokens_where_they_lay() -> None:
    torch.manual_seed(0)
    theirs = reference(48, 2, 2, 32)
    ours = VisionTransformer(32, 2, 2, 48, 48).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 48, 48)
    tokens = []
    theirs.encoder.register_forward_hook(lambda *arguments: tokens.append(arguments[2]))
    theirs(images)
    patches = ours(images, BOTH)["patches"]
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(patches[:, :, row, column], tokens[0][:, 1 + 3 * row + column])


def test_vit_base_has_torchvisions_parameters() -> None:
    with torch.device("meta"):
        ours = backbones["vit-base"](weights="none").build(224, 224).state_dict()
        theirs = torchvision.models.vit_b_16().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if not key.startswith("heads.")
    }


@pytest.mark.parametrize(("name", "millions"), [("vit-tiny", 5.5), ("vit-small", 21.7), ("vit-base", 85.8)])
def test_the_sizes_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        vit = backbones[name](weights="none").build(224, 224)
    assert sum(parameter.numel() for parameter in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("stride", "rows", "columns"), [(16, 16, 8), (12, 21, 10), (14, 18, 9)])
def test_overlapping_patches_of_a_person(stride: int, rows: int, columns: int) -> None:
    # the grids that He et al. give for 256x128 pixels
    with torch.device("meta"):
        shapes = VisionTransformer(24, 1, 3, 256, 128, stride).shapes
    assert (shapes["patches"].height, shapes["patches"].width) == (rows, columns)


@pytest.mark.parametrize("cameras", [0, 2])
@pytest.mark.parametrize(("height", "width", "stride"), [(64, 32, 16), (50, 33, 12), (16, 16, 1)])
def test_declared_shapes_are_the_real_ones(height: int, width: int, stride: int, cameras: int) -> None:
    vit = small(height, width, stride=stride, cameras=cameras).eval()
    maps = vit(torch.randn(1, 3, height, width), BOTH)
    assert list(vit.shapes) == list(maps) == ["patches", "token"]  # the last is what aggregators take by default
    for name, shape in vit.shapes.items():
        assert maps[name].shape == (1, shape.channels, shape.height, shape.width)
        assert shape.signed and maps[name].min() < 0


def test_only_what_is_wanted_is_returned() -> None:
    assert list(small()(torch.randn(1, 3, 32, 32), ["token"])) == ["token"]


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 15)])
def test_an_image_below_a_patch_is_refused(height: int, width: int) -> None:
    with pytest.raises(ContractError, match=f"found an input of {height}x{width} pixels; .* raise input.height"):
        small(height, width)


def test_nothing_follows_either_map() -> None:
    x = torch.randn(2, 24, 2, 2)
    for name in BOTH:
        assert torch.equal(small().tail(name)(x), x)


def test_a_camera_moves_every_token_by_its_embedding() -> None:
    vit, plain = small(cameras=2).eval(), small().eval()
    plain.load_state_dict({k: v for k, v in vit.state_dict().items() if k != "camera_embedding"})
    images = torch.randn(3, 3, 32, 32)
    found = vit(images, BOTH, torch.tensor([1, 0, 1]))
    positions = plain.encoder.pos_embedding.detach().clone()
    for image, camera in enumerate([1, 0, 1]):
        plain.encoder.pos_embedding.data = positions + 3 * vit.camera_embedding[camera]
        expected = plain(images[image : image + 1], BOTH)
        for name in BOTH:
            torch.testing.assert_close(found[name][image], expected[name][0])


def test_an_unknown_camera_has_an_embedding_of_its_own() -> None:
    vit = small(cameras=2).eval()
    images = torch.randn(1, 3, 32, 32).expand(5, -1, -1, -1)
    tokens = vit(images, ["token"], torch.tensor([0, 1, 2, -1, 99]))["token"]
    without = vit(images, ["token"])["token"]
    for unknown in (2, 3, 4):
        torch.testing.assert_close(tokens[unknown], without[0])
    for known in (0, 1):
        assert not torch.allclose(tokens[known], without[0], atol=1e-3)


def test_cameras_are_ignored_without_embeddings() -> None:
    vit = small().eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vit(images, ["token"], torch.tensor([0, 5]))["token"], vit(images, ["token"])["token"])
    assert not any("camera" in name for name in vit.state_dict())


def test_the_unknown_camera_learns_from_images_of_known_ones() -> None:
    def gradient(camera_dropout: float) -> Tensor:
        vit = small(cameras=3, camera_dropout=camera_dropout)
        vit(torch.randn(64, 3, 32, 32), ["token"], torch.zeros(64, dtype=torch.int64))["token"][:, 0].sum().backward()
        assert vit.camera_embedding.grad is not None
        return vit.camera_embedding.grad.abs().sum((1, 2)) > 0

    assert gradient(0.0).tolist() == [True, False, False, False]
    assert gradient(0.5).tolist() == [True, False, False, True]
    assert gradient(1.0).tolist() == [False, False, False, True]


def test_the_probability_to_drop_a_branch_rises_with_the_layer() -> None:
    layers = small(layers=3, drop_path=0.4).encoder.layers
    assert [(block.dropout.p, block.mlp[-1].p) for block in layers] == [(0.0, 0.0), (0.2, 0.2), (0.4, 0.4)]


def test_both_branches_of_a_layer_are_dropped_image_by_image() -> None:
    vit = small(drop_path=0.5)
    images = torch.randn(1, 3, 32, 32).expand(64, -1, -1, -1)
    tokens = vit(images, ["token"])["token"].flatten(1).detach()
    inside: list[Tensor] = []
    vit.encoder.layers[0].register_forward_hook(lambda *arguments: inside.append(arguments[2]))
    vit.eval()(images[:1], ["token"])
    last, x = vit.encoder.layers[1], inside[0]
    expected = []
    for attention in (0, 2):  # a branch that is kept counts for those that are not
        y = x + attention * last.self_attention(*[last.ln_1(x)] * 3)[0]
        expected += [vit.encoder.ln(y + mlp * last.mlp(last.ln_2(y)))[0, 0] for mlp in (0, 2)]
    matches = torch.stack([(tokens - row).abs().amax(1) < 1e-4 for row in expected])
    assert matches.sum(0).tolist() == [1] * 64  # each image is one of the four
    assert matches.any(1).all()  # and each of the four occurs


def test_one_seed_gives_one_result_in_training() -> None:
    vit = small(cameras=2, drop_path=0.5)
    images, cameras = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(vit(images, ["token"], cameras)["token"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("cameras", [0, 2])
def test_it_can_be_exported_and_gives_the_same(cameras: int) -> None:
    vit = small(48, 32, cameras=cameras, stride=12).eval()
    images = torch.randn(2, 3, 48, 32)
    exported = torch.export.export(vit, (images, BOTH))
    expected = vit(images, BOTH)
    for name, found in exported.module()(images, BOTH).items():
        torch.testing.assert_close(found, expected[name])


def test_copies_channels_last_and_bfloat16_give_the_same() -> None:
    vit = small(48, 32, cameras=2).eval()
    images, cameras = torch.randn(1, 3, 48, 32), torch.tensor([1])
    with torch.no_grad():
        expected = vit(images, BOTH, cameras)
        last = copy.deepcopy(vit).to(memory_format=torch.channels_last)
        found = last(images.to(memory_format=torch.channels_last), BOTH, cameras)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = vit(images, BOTH, cameras)
    for name in BOTH:
        torch.testing.assert_close(found[name], expected[name])
        assert F.cosine_similarity(coarse[name].float().flatten(), expected[name].flatten(), 0) > 0.999


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch keeps weights, empty and on a machine without a network."""

    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_positions_on_a_line_stay_on_it_when_their_grid_is_resized() -> None:
    # from 2 to 4 places: the new centres lie at -1/4, 1/4, 3/4, 5/4 of the old ones, and those outside take the nearest
    rows = torch.tensor([[0.0, 0.0], [8.0, 8.0]])
    positions = torch.stack([rows, rows.T]).flatten(1).T[None]
    resized = resize_positions(torch.cat([torch.tensor([[[7.0, 9.0]]]), positions], 1), 4, 2)
    assert resized[0, 0].tolist() == [7.0, 9.0]
    assert resized[0, 1:, 0].view(4, 2).tolist() == [[0, 0], [2, 2], [6, 6], [8, 8]]
    assert resized[0, 1:, 1].view(4, 2).tolist() == [[0, 8]] * 4


def test_positions_of_the_same_grid_are_kept() -> None:
    positions = torch.randn(1, 10, 4)
    assert torch.equal(resize_positions(positions, 3, 3), positions)
    assert torch.equal(resize_positions(positions[:, :7], 3, 2), positions[:, :7])  # 6 are no square


def published_file(layers: int = 12) -> dict[str, Tensor]:
    """Return the state dict of a ViT of vit-tiny's width for 48x48 pixels as torchvision has published them."""
    torch.manual_seed(1)
    state = Reference(48, 16, layers, 3, 192, 768, num_classes=10).state_dict()
    old = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in state
    return state


@pytest.mark.parametrize("cameras", [0, 2])
def test_a_file_of_torchvision_is_loaded_for_another_grid_without_its_classifier(cameras: int, tmp_path: Path) -> None:
    state = published_file()
    torch.save(state, tmp_path / "vit.pth")
    vit = backbones["vit-tiny"](weights=str(tmp_path / "vit.pth"), stride=8, cameras=cameras).build(48, 32)
    layer = vit.encoder.layers[11]
    assert torch.equal(layer.mlp[0].weight, state["encoder.layers.encoder_layer_11.mlp.linear_1.weight"])
    assert torch.equal(layer.mlp[3].bias, state["encoder.layers.encoder_layer_11.mlp.linear_2.bias"])
    assert torch.equal(vit.conv_proj.weight, state["conv_proj.weight"])
    expected = resize_positions(state["encoder.pos_embedding"], 5, 3)
    assert torch.equal(vit.encoder.pos_embedding, expected)


def test_a_file_of_another_depth_does_not_fit(tmp_path: Path) -> None:
    torch.save(published_file(layers=2), tmp_path / "vit.pth")
    with pytest.raises(ReidError, match=r"does not fit vit-tiny: it lacks encoder\.layers\.encoder_layer_2\.ln_1"):
        backbones["vit-tiny"](weights=str(tmp_path / "vit.pth")).build(48, 48)


@pytest.mark.parametrize("name", ["vit-tiny", "vit-small"])
def test_sizes_without_published_weights_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r'found weights = "imagenet", which are published for vit-base only; write'):
        backbones[name](weights="imagenet")
    assert backbones[name]().weights == "none"


def test_imagenet_without_a_network_names_the_file_and_the_folder(checkpoints: Path) -> None:
    with pytest.raises(ReidError, match="no route to host") as caught:
        load_vit_weights(small(), "vit-base", "imagenet")
    assert f"put the file vit_b_16-c867db91.pth into {checkpoints}" in str(caught.value)


def test_nothing_is_fetched_on_the_meta_device(checkpoints: Path) -> None:
    with torch.device("meta"):
        vit = backbones["vit-base"](cameras=7).build(256, 128)
    assert vit.shapes["token"].channels == 768 and not checkpoints.exists()


def test_the_mean_over_positions_takes_the_token_as_it_is_and_the_generalized_mean_refuses_it() -> None:
    vit = small().eval()
    maps = vit(torch.randn(2, 3, 32, 32), BOTH)
    pooled = Average().build(vit)(maps).vectors["global"]
    assert torch.equal(pooled, maps["token"].flatten(1))
    with pytest.raises(ContractError, match="map 'token' may be negative"):
        GeneralizedMean().build(vit)
