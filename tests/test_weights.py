"""Where a backbone's weights come from."""

import hashlib
import http.client
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from reidcore.builtin.modules.resnet import ResNet
from reidcore.errors import ReidError
from reidcore.weights import leave_out, load_weights

URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
FILE = "resnet18-f37072fd.pth"


@pytest.fixture(scope="module")
def weights18() -> dict[str, Tensor]:
    torch.manual_seed(18)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.0)  # type: ignore[arg-type]
    return model.state_dict()


def network() -> ResNet:
    return ResNet((2, 2, 2, 2), 32, 32, bottleneck=False)


def load(resnet: ResNet, weights: Path | str, url: str = URL) -> None:
    load_weights(resnet, "resnet18", str(weights), url, new=("NL_",), adapt=leave_out("fc."))


def named_by_hash(file: Path) -> Path:
    """Rename a file as published ones are called."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return file.rename(file.with_name(f"resnet18-{digest[:8]}.pth"))


def message(weights: Path | str) -> str:
    with pytest.raises(ReidError) as caught:
        load(network(), weights)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_weights_is_loaded(weights18: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights18, file)
    else:
        save_file(weights18, file)
    resnet = network()
    load(resnet, file)
    for key, value in resnet.state_dict().items():
        assert torch.equal(value, weights18[key]), key


def test_a_file_without_batch_counts_is_loaded(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({k: v for k, v in weights18.items() if "num_batches_tracked" not in k}, tmp_path / "old.pth")
    resnet = network()
    load(resnet, tmp_path / "old.pth")
    assert torch.equal(resnet.layer4[1].conv2.weight, weights18["layer4.1.conv2.weight"])


def test_what_is_new_may_be_missing_and_is_loaded_where_it_is_there(
    weights18: dict[str, Tensor], tmp_path: Path
) -> None:
    resnet = ResNet((2, 2, 2, 2), 32, 32, bottleneck=False, non_local=(0, 0, 1, 0))
    before = resnet.NL_3[0].g.weight.clone()
    torch.save(weights18, tmp_path / "plain.pth")
    load(resnet, tmp_path / "plain.pth")
    assert torch.equal(resnet.NL_3[0].g.weight, before)
    torch.save(weights18 | {"NL_3.0.g.weight": before + 1}, tmp_path / "more.pth")
    load(resnet, tmp_path / "more.pth")
    assert torch.equal(resnet.NL_3[0].g.weight, before + 1)


def test_a_file_may_be_adapted(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({f"module.{key}": value for key, value in weights18.items() if "fc." not in key}, tmp_path / "ddp.pth")
    resnet = network()
    load_weights(
        resnet,
        "resnet18",
        str(tmp_path / "ddp.pth"),
        URL,
        adapt=lambda state: {key.removeprefix("module."): value for key, value in state.items()},
    )
    assert torch.equal(resnet.conv1.weight, weights18["conv1.weight"])


def test_a_file_of_another_network_says_what_does_not_fit(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "r18.pth"
    torch.save(weights18, file)
    resnet50 = ResNet((3, 4, 6, 3), 32, 32, bottleneck=True)
    with pytest.raises(ReidError) as caught:
        load_weights(resnet50, "resnet50", str(file), URL, adapt=leave_out("fc."))
    found = str(caught.value)
    assert found.startswith(f"backbone.weights: {file} does not fit resnet50: it lacks layer1.0.conv3.weight, ")
    assert found.endswith(" more") and "\n" not in found


def test_a_file_with_another_shape_says_which(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "grey.pth"
    torch.save(weights18 | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    assert message(file) == f"backbone.weights: {file} does not fit resnet18: it has another shape of conv1.weight"


def test_a_file_that_does_not_fit_changes_nothing(weights18: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights18 | {"conv1.bias": torch.zeros(64)}, tmp_path / "more.pth")
    resnet = network()
    before = resnet.conv1.weight.clone()
    with pytest.raises(ReidError, match=r"it has conv1\.bias$"):
        load(resnet, tmp_path / "more.pth")
    assert torch.equal(resnet.conv1.weight, before)


def test_a_missing_file_says_what_may_stand_there(tmp_path: Path) -> None:
    assert message(tmp_path / "no.pth") == (
        f"backbone.weights: found '{tmp_path / 'no.pth'}', which is no file; expected 'imagenet', 'none' or a file"
    )


def test_a_missing_file_is_found_on_the_meta_device_too(tmp_path: Path) -> None:
    with torch.device("meta"), pytest.raises(ReidError, match="which is no file"):
        load(network(), tmp_path / "no.pth")


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
    assert message("imagenet") == (
        f"backbone.weights: cannot fetch {URL} (<urlopen error no route to host>); put the file {FILE} into "
        f'{checkpoints}, or write weights = "none" to start from random weights'
    )
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize(
    "error", [http.client.IncompleteRead(b""), ConnectionResetError("reset"), TimeoutError("slow")]
)
def test_a_broken_download_says_the_same(error: Exception, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", broken)
    assert f"put the file {FILE} into {checkpoints}" in message("imagenet")


def test_what_is_fetched_is_the_file_with_its_hash(
    weights18: dict[str, Tensor], checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights18, checkpoints.parent.parent.parent / "published.pth")
    file = named_by_hash(checkpoints.parent.parent.parent / "published.pth")
    asked = []

    def fetch(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url, hash_prefix))
        shutil.copy(file, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    resnet = network()
    url = f"https://example.org/{file.name}"
    load(resnet, "imagenet", url)
    assert asked == [(url, file.stem.removeprefix("resnet18-"))]
    assert torch.equal(resnet.conv1.weight, weights18["conv1.weight"])


def test_imagenet_weights_that_are_there_are_used_without_a_network(
    weights18: dict[str, Tensor], checkpoints: Path
) -> None:
    checkpoints.mkdir(parents=True)
    torch.save(weights18, checkpoints / "fetched.pth")
    file = named_by_hash(checkpoints / "fetched.pth")
    resnet = network()
    load(resnet, "imagenet", f"https://example.org/{file.name}")
    assert torch.equal(resnet.layer1[0].conv1.weight, weights18["layer1.0.conv1.weight"])


@pytest.mark.parametrize("damaged", [False, True])
def test_imagenet_weights_with_another_hash_are_refused(
    damaged: bool, weights18: dict[str, Tensor], checkpoints: Path
) -> None:
    checkpoints.mkdir(parents=True)
    torch.save(weights18, checkpoints / FILE)  # they would fit, as those of another version do
    if damaged:
        (checkpoints / FILE).write_bytes(b"<html>")
    begins = hashlib.sha256((checkpoints / FILE).read_bytes()).hexdigest()[:8]
    assert message("imagenet") == (
        f"backbone.weights: {checkpoints / FILE} is not the published file, whose SHA-256 begins with f37072fd: its "
        f"own begins with {begins}; put the right one there, or delete it to have it fetched"
    )


def test_nothing_is_fetched_on_the_meta_device(checkpoints: Path) -> None:
    with torch.device("meta"):
        load(network(), "imagenet")
    assert not checkpoints.exists()
