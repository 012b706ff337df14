"""OSNet with the published parameter names, as a backbone. B batch, C channels, H W map."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from reidcore.errors import ContractError, ReidError
from reidcore.layers import InstanceNorm
from reidcore.types import MapShape
from reidcore.weights import load_weights

STAGES = {"stage1": "conv2", "stage2": "conv3", "stage3": "conv4", "stage4": "conv5"}


class OSNet(nn.Module):
    """Omni-scale network (Zhou et al. 2019) without its embedding layer and classifier.

    It offers the maps `stage1` at 1/8 of the image and `stage2` to `stage4` at 1/16. `scale` is the factor on the
    published channels 256, 384, 512 and 512. `ibn` is the authors' form with instance norms, in the stem and in the
    blocks of the first stage (Pan et al. 2018). Raises ContractError for images of fewer than 13 pixels a side.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, scale: float, height: int, width: int, ibn: bool = False) -> None:
        super().__init__()
        if min(height, width) < 13:
            raise ContractError(
                f"backbone: found an input of {height}x{width} pixels; OSNet halves it four times and takes no side "
                "below 13; raise input.height and input.width"
            )
        stem, *channels = (int(scale * published) for published in (64, 256, 384, 512))
        self.conv1 = _convolution(3, stem, 7, stride=2)
        if ibn:
            self.conv1.bn = InstanceNorm(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(*_blocks(stem, channels[0], ibn), _halving(channels[0]))
        self.conv3 = nn.Sequential(*_blocks(channels[0], channels[1]), _halving(channels[1]))
        self.conv4 = nn.Sequential(*_blocks(channels[1], channels[2]))
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

    (B, C, H, W) -> (B, `out`, H, W), from `out` / 4 channels in each stream; `ibn` norms the sum by instance.
    """

    def __init__(self, channels: int, out: int, ibn: bool = False) -> None:
        super().__init__()
        middle = out // 4
        self.conv1 = _convolution(channels, middle)
        self.conv2a = _lite(middle)
        self.conv2b = nn.Sequential(*(_lite(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_lite(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_lite(middle) for _ in range(4)))
        self.gate = Gate(middle)
        self.conv3 = _convolution(middle, out, relu=False)
        self.downsample = _convolution(channels, out, relu=False) if channels != out else nn.Identity()
        self.IN = InstanceNorm(out) if ibn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, at least 0."""
        y, gate = self.conv1(x), self.gate
        y = gate(self.conv2a(y)) + gate(self.conv2b(y)) + gate(self.conv2c(y)) + gate(self.conv2d(y))
        return torch.relu(self.IN(self.conv3(y) + self.downsample(x)))


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


def _blocks(channels: int, out: int, ibn: bool = False) -> tuple[Block, Block]:
    return Block(channels, out, ibn), Block(out, out, ibn)


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
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in plain.items() if not key.startswith(("fc.", "classifier."))}
