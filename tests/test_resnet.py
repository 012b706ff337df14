"""ResNet against torchvision's, and where its weights come from."""

import http.client
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from reidcore.builtin.backbones import _RESNETS as backbones
from reidcore.builtin.backbones import reidcore_backbones
from reidcore.builtin.modules.resnet import ResNet, load_weights
from reidcore.errors import ReidError

STAGES = ("stage1", "stage2", "stage3", "stage4")

REFERENCES: dict[int, Callable[[], nn.Module]] = {
    18: torchvision.models.resnet18,
    50: torchvision.models.resnet50,
}


@pytest.fixture(scope="module")
def weights18() -> dict[str, Tensor]:
    torch.manual_seed(18)
    return randomized(torchvision.models.resnet18()).state_dict()


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch keeps downloaded weights: empty, and on a machine without a network."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "torch home" / "hub" / "checkpoints"


def randomized(model: nn.Module) -> nn.Module:
    """Give the norm layers statistics and weights that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.0)  # type: ignore[arg-type]
    return model


def reference_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    maps = {}
    for number in (1, 2, 3, 4):
        x = getattr(model, f"layer{number}")(x)
        maps[f"stage{number}"] = x
    return maps


def message(weights: Path | str, name: str = "resnet18", depth: int = 18) -> str:
    with pytest.raises(ReidError) as caught:
        load_weights(ResNet(depth, 32, 32), name, str(weights))
    return str(caught.value)


@pytest.mark.parametrize("depth", REFERENCES)
def test_maps_equal_torchvisions_for_the_same_state_dict(depth: int) -> None:
    torch.manual_seed(depth)
    reference = randomized(REFERENCES[depth]()).eval()
    ours = ResNet(depth, 48, 32, last_stride=2).eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        maps, expected = ours(images, STAGES), reference_maps(reference, images)
    for stage in STAGES:
        torch.testing.assert_close(maps[stage], expected[stage])


def test_the_last_stride_changes_only_the_step_of_the_last_stage() -> None:
    torch.manual_seed(0)
    coarse, fine = ResNet(18, 64, 32, last_stride=2).eval(), ResNet(18, 64, 32, last_stride=1).eval()
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        a, b = coarse(images, STAGES), fine(images, STAGES)
    assert torch.equal(a["stage3"], b["stage3"])
    assert (a["stage4"].shape[2:], b["stage4"].shape[2:]) == ((2, 1), (4, 2))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stem_stride", [2, 4])
@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(33, 17), (63, 50), (1, 2)])
def test_declared_shapes_are_the_real_ones(
    depth: int, last_stride: int, stem_stride: int, height: int, width: int
) -> None:
    backbone = ResNet(depth, height, width, last_stride, stem_stride=stem_stride).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, height, width), STAGES)
    assert list(backbone.shapes) == list(STAGES)
    for stage, shape in backbone.shapes.items():
        assert maps[stage].shape == (1, shape.channels, shape.height, shape.width)
        assert not shape.signed and maps[stage].min() >= 0


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_has_torchvisions_parameters(depth: int) -> None:
    (config,) = [item.config for item in reidcore_backbones() if item.name == f"resnet{depth}"]
    with torch.device("meta"):
        ours = config(weights="none").build(64, 32).state_dict()
        theirs = torchvision.models.get_model(f"resnet{depth}").state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if not key.startswith("fc.")
    }


@pytest.mark.parametrize(
    ("want", "computed"),
    [(("stage1",), 1), (("stage2",), 2), (("stage3", "stage1"), 3), (("stage4",), 4), ((), 0)],
)
def test_only_what_is_wanted_is_computed(want: tuple[str, ...], computed: int) -> None:
    backbone = ResNet(18, 32, 32).eval()
    ran = []
    for number in (1, 2, 3, 4):
        getattr(backbone, f"layer{number}").register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 32, 32), want)
    assert set(maps) == set(want)
    assert ran == list(range(1, computed + 1))


def test_the_tail_continues_where_the_map_ends() -> None:
    backbone = ResNet(18, 32, 32).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 32, 32), STAGES)
        for stage in STAGES:
            torch.testing.assert_close(backbone.tail(stage).eval()(maps[stage]), maps["stage4"])


def test_the_tail_is_a_copy() -> None:
    backbone = ResNet(18, 32, 32)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    tail = backbone.tail("stage3")
    with torch.no_grad():
        for parameter in tail.parameters():
            parameter.zero_()
    tail(torch.randn(2, 256, 2, 2))  # moves the statistics of its norm layers
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_weights_none_leaves_the_random_ones() -> None:
    resnet = ResNet(18, 32, 32)
    before = resnet.conv1.weight.clone()
    load_weights(resnet, "resnet18", "none")
    assert torch.equal(resnet.conv1.weight, before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_weights_is_loaded(weights18: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights18, file)
    else:
        save_file(weights18, file)
    resnet = ResNet(18, 32, 32)
    load_weights(resnet, "resnet18", str(file))
    for key, value in resnet.state_dict().items():
        assert torch.equal(value, weights18[key]), key


def test_a_file_without_batch_counts_is_loaded(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({k: v for k, v in weights18.items() if "num_batches_tracked" not in k}, tmp_path / "old.pth")
    resnet = ResNet(18, 32, 32)
    load_weights(resnet, "resnet18", str(tmp_path / "old.pth"))
    assert torch.equal(resnet.layer4[1].conv2.weight, weights18["layer4.1.conv2.weight"])


def test_a_file_of_another_network_says_what_does_not_fit(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "r18.pth"
    torch.save(weights18, file)
    found = message(file, "resnet50", 50)
    assert found.startswith(f"backbone.weights: {file} does not fit resnet50: it lacks layer1.0.conv3.weight, ")
    assert found.endswith(" more") and "\n" not in found


def test_a_file_with_another_shape_says_which(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "grey.pth"
    torch.save(weights18 | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    assert message(file) == f"backbone.weights: {file} does not fit resnet18: it has another shape of conv1.weight"


def test_a_file_that_does_not_fit_changes_nothing(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights18 | {"conv1.bias": torch.zeros(64)}, tmp_path / "more.pth")
    resnet = ResNet(18, 32, 32)
    before = resnet.conv1.weight.clone()
    with pytest.raises(ReidError, match=r"it has conv1\.bias$"):
        load_weights(resnet, "resnet18", str(tmp_path / "more.pth"))
    assert torch.equal(resnet.conv1.weight, before)


def test_a_missing_file_says_what_may_stand_there(tmp_path: Path) -> None:
    assert message(tmp_path / "no.pth") == (
        f"backbone.weights: found '{tmp_path / 'no.pth'}', which is no file; expected 'imagenet', 'none' or a file"
    )


def test_a_missing_file_is_found_on_the_meta_device_too(tmp_path: Path) -> None:
    with torch.device("meta"), pytest.raises(ReidError, match="which is no file"):
        load_weights(ResNet(18, 32, 32), "resnet18", str(tmp_path / "no.pth"))


@pytest.mark.parametrize("state", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {"a": torch.zeros(1)}}])
def test_a_file_that_is_no_state_dict_is_refused(state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "odd.pth")
    assert message(tmp_path / "odd.pth").endswith("odd.pth is not a state dict: a dict of names and tensors")


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.target, "owned")


@pytest.mark.parametrize("save", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))])
def test_code_in_a_file_is_not_executed(save: Callable[[object, Path], object], tmp_path: Path) -> None:
    save({"conv1.weight": Evil(tmp_path / "owned")}, tmp_path / "evil.pth")
    found = message(tmp_path / "evil.pth")
    assert "holds more than tensors (UnpicklingError)" in found and "\n" not in found
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(content)
    assert f"cannot read {file}" in message(file)


def test_a_cut_off_file_is_named(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "cut.pth"
    torch.save(weights18, file)
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"cannot read {file}" in message(file)


def test_imagenet_without_a_network_names_the_file_and_the_folder(checkpoints: Path) -> None:
    found = message("imagenet")
    assert "no route to host" in found and 'weights = "none"' in found
    assert f"put the file resnet18-f37072fd.pth of torchvision into {checkpoints}" in found
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize(
    "error", [http.client.IncompleteRead(b""), ConnectionResetError("reset"), TimeoutError("slow")]
)
def test_a_broken_download_says_the_same(error: Exception, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", broken)
    assert f"put the file resnet18-f37072fd.pth of torchvision into {checkpoints}" in message("imagenet")


def test_what_is_fetched_is_torchvisions_file_with_its_hash(
    weights18: dict[str, Tensor], checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url, hash_prefix))
        torch.save(weights18, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    resnet = ResNet(18, 32, 32)
    load_weights(resnet, "resnet18", "imagenet")
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    assert torch.equal(resnet.conv1.weight, weights18["conv1.weight"])


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_has_imagenet_weights_with_a_hash_in_their_name(depth: int) -> None:
    file = Path(get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"].url)
    assert len(file.stem.rpartition("-")[2]) == 8


def test_imagenet_weights_that_are_there_are_used_without_a_network(
    weights18: dict[str, Tensor], checkpoints: Path
) -> None:
    checkpoints.mkdir(parents=True)
    torch.save(weights18, checkpoints / "resnet18-f37072fd.pth")  # torch does not compare the hash of what is there
    resnet = ResNet(18, 32, 32)
    load_weights(resnet, "resnet18", "imagenet")
    assert torch.equal(resnet.layer1[0].conv1.weight, weights18["layer1.0.conv1.weight"])


def test_damaged_imagenet_weights_are_named(checkpoints: Path) -> None:
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").write_bytes(b"<html>")
    assert f"cannot read {checkpoints / 'resnet18-f37072fd.pth'}" in message("imagenet")


def test_nothing_is_fetched_on_the_meta_device(checkpoints: Path) -> None:
    with torch.device("meta"):
        load_weights(ResNet(18, 32, 32), "resnet18", "imagenet")
    assert not checkpoints.exists()


def test_base_scales_every_stage_and_has_no_imagenet_weights() -> None:
    resnet = ResNet(18, 32, 32, base=16)
    maps = resnet(torch.zeros(2, 3, 32, 32), ("stage1", "stage4"))
    assert [maps[name].shape[1] for name in ("stage1", "stage4")] == [16, 128]
    assert [resnet.shapes[name].channels for name in ("stage1", "stage4")] == [16, 128]
    with pytest.raises(ValueError, match=r"found base = 16, of which there are no ImageNet weights"):
        backbones["resnet18"](base=16)


def test_residual_branches_start_at_nothing() -> None:
    for depth in (18, 50):
        resnet = ResNet(depth, 32, 32)
        block = resnet.layer1[1]
        x = torch.rand(2, resnet.shapes["stage1"].channels, 4, 4)
        assert torch.equal(block(x), x)


def test_stages_that_are_not_built_take_no_parameters_and_their_weights_are_left_out(weights18, tmp_path) -> None:
    torch.save(weights18, tmp_path / "weights.pth")
    short, whole = ResNet(18, 32, 32, last_stride=2, stages=3).eval(), ResNet(18, 32, 32).eval()
    for resnet in (short, whole):
        load_weights(resnet, "resnet18", str(tmp_path / "weights.pth"))
    assert tuple(short.shapes) == STAGES[:3]
    assert not any(name.startswith("layer4") for name in short.state_dict())
    images = torch.rand(2, 3, 32, 32)
    maps = short(images, ("stage2", "stage3"))
    torch.testing.assert_close(maps["stage3"], whole(images, ("stage3",))["stage3"])
    torch.testing.assert_close(short.tail("stage2").eval()(maps["stage2"]), maps["stage3"])
    assert len(short.tail("stage3")) == 0


def test_the_last_stride_is_that_of_the_last_stage_which_is_built() -> None:
    coarse, fine = (ResNet(18, 64, 32, stages=3, last_stride=stride) for stride in (2, 1))
    sizes = [[(shape.height, shape.width) for shape in resnet.shapes.values()] for resnet in (coarse, fine)]
    assert sizes == [[(16, 8), (8, 4), (4, 2)], [(16, 8), (8, 4), (8, 4)]]
    for stages, stride, expected in ((3, 1, (2, 256, 8, 4)), (1, 2, (2, 64, 8, 4)), (1, 1, (2, 64, 16, 8))):
        last = f"stage{stages}"
        maps = ResNet(18, 64, 32, stages=stages, last_stride=stride)(torch.zeros(2, 3, 64, 32), (last,))
        assert maps[last].shape == expected
