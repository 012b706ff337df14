"""OSNet with the published parameter names, as a backbone. B batch, C channels, H W map."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from reidcore.errors import ContractError, ReidError
from reidcore.layers import InstanceNorm
from reidcore.types import MapShape
from reidcore.weights import load_weights

Norm = Literal["none", "after", "inside"]
Norms = tuple[Norm, Norm]

STAGES = {"stage1": "conv2", "stage2": "conv3", "stage3": "conv4", "stage4": "conv5"}


class OSNet(nn.Module):
    """Omni-scale network (Zhou et al. 2019) without its embedding layer and classifier.

    It offers the maps `stage1` at 1/8 of the image and `stage2` to `stage4` at 1/16. `scale` is the factor on the
    published channels 256, 384, 512 and 512. `ibn` is the authors' form with instance norms, in the stem and in the
    blocks of the first stage (Pan et al. 2018); `ain` is the one that was searched for, with instance norms in the stem
    and inside the branch of four blocks (Zhou et al. 2021). Raises ContractError for images of fewer than 13 pixels a
    side.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, scale: float, height: int, width: int, ibn: bool = False, ain: bool = False) -> None:
        super().__init__()
        if min(height, width) < 13:
            raise ContractError(
                f"backbone: found an input of {height}x{width} pixels; OSNet halves it four times and takes no side "
                "below 13; raise input.height and input.width"
            )
        stem, *channels = (int(scale * published) for published in (64, 256, 384, 512))
        self.conv1 = _convolution(3, stem, 7, stride=2)
        if ibn or ain:
            self.conv1.bn = InstanceNorm(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first: Norms = ("inside", "inside") if ain else ("after", "after") if ibn else ("none", "none")
        second: Norms = ("none", "inside") if ain else ("none", "none")
        third: Norms = ("inside", "none") if ain else ("none", "none")
        self.conv2 = nn.Sequential(*_blocks(stem, channels[0], first), _halving(channels[0]))
        self.conv3 = nn.Sequential(*_blocks(channels[0], channels[1], second), _halving(channels[1]))
        self.conv4 = nn.Sequential(*_blocks(channels[1], channels[2], third))
        self.conv5 = _convolution(channels[2], channels[2])
        rows, columns = (-(-side // 4) for side in (height, width))
        self.shapes = {
            stage: MapShape(out, rows // step, columns // step)
            for stage, out, step in zip(STAGES, (*channels, channels[2]), (2, 4, 4, 4), strict=True)
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, want: Sequence[str], cameras: Tensor | None = None) -> Mapping[str, Tensor]:
        """(B, 3, H, W) normalised -> `{stage: (B, C, H, W)}` for the wanted stages; later stages are not computed."""
        x = self.maxpool(self.conv1(images))
        maps: dict[str, Tensor] = {}
        for stage, layer in STAGES.items():
            if len(maps) == len(set(want)):
                break
            x = getattr(self, layer)(x)
            if stage in want:
                maps[stage] = x
        return maps

    def tail(self, after: str) -> nn.Sequential:
        """Return a copy of the stages after map `after`."""
        later = list(STAGES)[list(STAGES).index(after) + 1 :]
        return nn.Sequential(*(copy.deepcopy(getattr(self, STAGES[stage])) for stage in later))


class Block(nn.Module):
    """Omni-scale residual block: four streams see 3, 5, 7 and 9 pixels, and one gate weighs the channels of each.

    (B, C, H, W) -> (B, `out`, H, W), from `out` / 4 channels in each stream. `norm` is where an instance norm is: after
    the shortcut is added, or inside the branch, in place of its last batch norm.
    """

    def __init__(self, channels: int, out: int, norm: Norm = "none") -> None:
        super().__init__()
        middle = out // 4
        self.conv1 = _convolution(channels, middle)
        self.conv2a = _lite(middle)
        self.conv2b = nn.Sequential(*(_lite(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_lite(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_lite(middle) for _ in range(4)))
        self.gate = Gate(middle)
        self.conv3 = _convolution(middle, out, relu=False)
        if norm == "inside":
            self.conv3.bn = nn.Identity()
        self.downsample = _convolution(channels, out, relu=False) if channels != out else nn.Identity()
        self.inside = norm == "inside"
        self.IN = nn.Identity() if norm == "none" else InstanceNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, at least 0."""
        y, gate = self.conv1(x), self.gate
        y = gate(self.conv2a(y)) + gate(self.conv2b(y)) + gate(self.conv2c(y)) + gate(self.conv2d(y))
        y, x = self.conv3(y), self.downsample(x)
        return torch.relu(self.IN(y) + x if self.inside else self.IN(y + x))


class Gate(nn.Module):
    """Aggregation gate: (B, C, H, W) times a weight in 0..1 of each channel, which the map's averages decide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted map, of the same shape."""
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


def _convolution(channels: int, out: int, kernel: int = 1, stride: int = 1, relu: bool = True) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    layers = OrderedDict[str, nn.Module](conv=convolution, bn=nn.BatchNorm2d(out))
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _lite(channels: int) -> nn.Sequential:
    """Return a 3x3 convolution in two: across channels, then within each."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, channels, 1, bias=False),
            conv2=nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            bn=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
        )
    )


def _blocks(channels: int, out: int, norms: Norms) -> tuple[Block, Block]:
    return Block(channels, out, norms[0]), Block(out, out, norms[1])


def _halving(channels: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, channels), nn.AvgPool2d(2))


def load_osnet_weights(osnet: OSNet, name: str, weights: str, published: str) -> None:
    """Load "imagenet" (torchreid's file, called `published` in torch's cache), a file, or nothing ("none").

    Raises ReidError when the file is not there, or does not fit. Torchreid's has no plain address to fetch it from, and
    no published hash to compare it with.
    """
    if weights == "imagenet":
        file = Path(torch.hub.get_dir()) / "checkpoints" / published
        if not file.is_file():
            raise ReidError(
                f"backbone.weights: there is no {file}; download the ImageNet weights of {name} from torchreid's model "
                "zoo (https://kaiyangzhou.github.io/deep-person-reid/MODEL_ZOO) and put them there under this name, or "
                'write weights = "none" to start from random weights'
            )
        weights = str(file)
    load_weights(osnet, name, weights, url="", adapt=_without_classifier)


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict as of one process, without the classifier."""
    plain = renamed({key.removeprefix("module."): value for key, value in state.items()})
    return {key: value for key, value in plain.items() if not key.startswith(("fc.", "classifier."))}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of torchreid's by the names of its plain form: it calls streams and halvings of the searched
    form otherwise.
    """

    def rename(key: str) -> str:
        key = re.sub(r"^pool([23])\.", r"conv\1.2.", key)
        key = re.sub(r"\.conv2\.0\.layers\.0\.", ".conv2a.", key)
        return re.sub(r"\.conv2\.([123])\.layers\.", lambda match: f".conv2{'abcd'[int(match[1])]}.", key)

    return {rename(key): value for key, value in state.items()}
