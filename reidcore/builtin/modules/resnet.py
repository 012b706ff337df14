"""ResNet in torchvision's form and with its parameter names, as a backbone. B batch, C channels, H W map."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from reidcore.errors import ReidError
from reidcore.types import MapShape

_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNet(nn.Module):
    """ResNet (He et al. 2016) without its classifier.

    It offers the maps `stage1` to `stage4`; with `last_stride` 1 the last one is at 1/16 of the image (Sun et al.
    2018). `base` is the number of channels of the stem, 64 in the published network; the stages scale with it.
    A `stem_stride` of 4 halves the height and width of every map. Only the first `stages` are built, the last of which
    has `last_stride`. Each residual branch starts at 0 (Goyal et al. 2017). Parameters are called as in torchvision,
    whose state dicts fit.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        depth: int,
        height: int,
        width: int,
        last_stride: int = 1,
        base: int = 64,
        stem_stride: int = 2,
        stages: int = 4,
    ) -> None:
        super().__init__()
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, base, 7, stride=stem_stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = base
        self.shapes: dict[str, MapShape] = {}
        for stride in (stem_stride, 2):
            height, width = -(-height // stride), -(-width // stride)
        strides = [1, 2, 2, 2][:stages]
        strides[-1] = last_stride
        for number, (blocks, stride) in enumerate(zip(_LAYERS[depth][:stages], strides, strict=True), 1):
            planes = base << (number - 1)
            layer = _stage(block, channels, planes, blocks, stride)
            channels = planes * block.expansion
            height, width = -(-height // stride), -(-width // stride)
            setattr(self, f"layer{number}", layer)
            self.shapes[f"stage{number}"] = MapShape(channels, height, width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor, want: Sequence[str], cameras: Tensor | None = None) -> Mapping[str, Tensor]:
        """(B, 3, H, W) normalised -> `{stage: (B, C, H, W)}` for the wanted stages; later stages are not computed."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = {}
        stages = tuple(self.shapes)
        for number, stage in enumerate(stages, 1):
            if not set(stages[number - 1 :]) & set(want):
                break
            x = getattr(self, f"layer{number}")(x)
            if stage in want:
                maps[stage] = x
        return maps

    def tail(self, after: str) -> nn.Sequential:
        """Return a copy of the stages after map `after`."""
        stages = tuple(self.shapes)
        later = range(stages.index(after) + 2, len(stages) + 1)
        return nn.Sequential(*(copy.deepcopy(getattr(self, f"layer{number}")) for number in later))


def _stage(block: type[BasicBlock | Bottleneck], channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    first = block(channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out, planes) for _ in range(blocks - 1)))


def load_weights(resnet: ResNet, name: str, weights: str) -> None:
    """Load "imagenet" (torchvision's file for `name`), a file, or nothing ("none").

    Raises ReidError when the file is not there and cannot be fetched, or does not fit. On the meta device, where only
    shapes are checked, nothing is fetched or read.
    """
    meta = resnet.conv1.weight.is_meta
    if weights == "none" or (weights == "imagenet" and meta):
        return
    path = _imagenet(name) if weights == "imagenet" else Path(weights)
    if not path.is_file():
        raise ReidError(f"backbone.weights: found '{path}', which is no file; expected 'imagenet', 'none' or a file")
    if meta:
        return
    unused = ("fc.", *(f"layer{number}." for number in range(len(resnet.shapes) + 1, 5)))
    state = {key: value for key, value in _read(path).items() if not key.startswith(unused)}
    own = resnet.state_dict()
    wrong = [
        *(f"lacks {key}" for key in own if key not in state and not key.endswith("num_batches_tracked")),
        *(f"has {key}" for key in state if key not in own),
        *(f"has another shape of {key}" for key in state if key in own and state[key].shape != own[key].shape),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ReidError(f"backbone.weights: {path} does not fit {name}: it {', '.join(wrong[:3])}{more}")
    resnet.load_state_dict(state, strict=False)


def _imagenet(name: str) -> Path:
    """Return torchvision's file for `name`, fetched when it is not there yet."""
    from torchvision.models import get_model_weights

    url = get_model_weights(name)["IMAGENET1K_V1"].url  # V2's recipe transfers less well
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2])
        except (OSError, RuntimeError, HTTPException) as error:
            raise ReidError(
                f"backbone.weights: cannot fetch the ImageNet weights of {name} ({error}); put the file {file.name} "
                f'of torchvision into {file.parent}, or write weights = "none" to start from random weights'
            ) from None
    return file


def _read(path: Path) -> dict[str, Tensor]:
    from reidcore.checkpoint import load_tensors

    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own advice is to run the code in the file
        raise ReidError(
            f"backbone.weights: cannot read {path}, which is damaged or holds more than tensors "
            f"({type(error).__name__}); expected what torch.save(model.state_dict(), FILE) writes, or safetensors"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ReidError(f"backbone.weights: {path} is not a state dict: a dict of names and tensors")
    return state
