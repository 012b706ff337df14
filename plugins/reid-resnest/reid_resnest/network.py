"""ResNeSt, with its authors' parameter names, as a backbone. B batch, C channels, H W map, R radix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from reidcore.errors import ContractError
from reidcore.layers import PREACT, InstanceBatchNorm, InstanceNorm, NonLocal, ResidualBlock, ResidualStages
from reidcore.types import MapShape

IBN = Literal["none", "a", "b"]

_IBN_STAGES = {"none": 0, "a": 3, "b": 2}


class SplitAttention(nn.Module):
    """A 3x3 convolution into `radix` splits, whose channels are summed by weights (Zhang et al. 2020, section 3.1).

    The weights come from the means of the splits' plain sum, through two layers and a softmax over the splits; the only
    split of radix 1 is scaled by a sigmoid.
    """

    def __init__(self, channels: int, radix: int, dilation: int) -> None:
        super().__init__()
        self.radix = radix
        inner = max(channels * radix // 4, 32)
        self.conv = _conv3x3(channels, channels * radix, dilation=dilation, groups=radix)
        self.bn0 = nn.BatchNorm2d(channels * radix)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.fc2 = nn.Conv2d(inner, channels * radix, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.relu(self.bn0(self.conv(x)))
        means = reduce(torch.add, x.mean((2, 3), keepdim=True).chunk(self.radix, 1))
        scores = torch.stack(self.fc2(self.relu(self.bn1(self.fc1(means)))).chunk(self.radix, 1))  # (R, B, C, 1, 1)
        weights = scores.softmax(0) if self.radix > 1 else scores.sigmoid()
        weights = weights.to(x.dtype)  # autocast on CUDA makes a softmax float32, and would make the map so
        # split by split: a sum over a dimension of its own would leave the channels-last layout
        return reduce(torch.add, map(torch.mul, x.chunk(self.radix, 1), weights))


class Block(ResidualBlock):
    """A residual block: relu(IN(branch(x)) + shortcut(x)), where `IN` may be the identity.

    The branch is a 1x1 convolution, split attention and a 1x1 convolution, the outer ones with a batch norm; the last
    norm starts with scale 0, and so the branch at nothing (Goyal et al. 2017). Only average pooling has a stride
    (section 4.1): over 3x3 positions after the attention, in a block that `averages`, and in the shortcut.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        radix: int,
        stride: int = 1,
        averages: bool = False,
        dilation: int = 1,
        ibn: IBN = "none",
    ) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn == "a" else nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width, radix, dilation)
        self.average = nn.AvgPool2d(3, stride, padding=1) if averages else nn.Identity()
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Module = nn.Identity()
        if channels != out:
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.downsample = nn.Sequential(pool, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))
        self.IN = InstanceNorm(out) if ibn == "b" else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def sums(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W') before the ReLU."""
        out: Tensor = self.average(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        out = self.IN(out)
        return out


class ResNeSt(ResidualStages):
    """ResNeSt (Zhang et al. 2020) without its classifier: a ResNet of split-attention blocks with a deep stem.

    It offers the maps `stage1` to `stage4`, and `stage3.0` after the first block of stage 3, where multi-granularity
    networks branch, and `stage1.preact` to `stage4.preact` before the last ReLU of a stage. `blocks` are the residual
    blocks of each stage; only the first `stages` are built, and the last of them has `last_stride`. With 1 the map of
    stage 4 is at 1/16 of the image, and the stage's 3x3 convolutions have dilation 2 from the second block on, so that
    they see as much as those that were trained: the authors' network with `dilation=2`. `base` is the number of
    channels inside the blocks of stage 1, 64 in the published networks, with which the stages scale; the stem has three
    convolutions, of `stem_width`, `stem_width` and twice as many channels.

    `ibn` "a" is instance norm in half of the first norm's channels of the blocks of stages 1 to 3; "b" is instance norm
    at the end of stages 1 and 2, and in place of the stem's last batch norm (Pan et al. 2018, as released for ResNet).

    `non_local` says how many of the last blocks of each stage a non-local block follows (Wang et al. 2018). They
    compute with half of the channels, or with `non_local_channels`. The map that ends in such a block is signed.

    Raises ContractError when an instance norm would see maps of a single position.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        blocks: Sequence[int],
        height: int,
        width: int,
        *,
        stem_width: int,
        base: int = 64,
        radix: int = 2,
        stages: int = 4,
        last_stride: int = 1,
        ibn: IBN = "none",
        non_local: Sequence[int] = (0, 0, 0, 0),
        non_local_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = stages
        channels = 2 * stem_width
        self.conv1 = nn.Sequential(
            _conv3x3(3, stem_width, stride=2),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
            _conv3x3(stem_width, stem_width),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
            _conv3x3(stem_width, channels),
        )
        self.bn1 = InstanceNorm(channels) if ibn == "b" else nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.shapes: dict[str, MapShape] = {}
        rows, columns = -(-height // 4), -(-width // 4)
        strides = [1, 2, 2, 2][:stages]
        dilation = 2 if last_stride < strides[-1] else 1  # of the last stage
        strides[-1] = last_stride
        for number, (count, stride) in enumerate(zip(blocks[:stages], strides, strict=True), 1):
            rows, columns = -(-rows // stride), -(-columns // stride)
            norm = ibn if number <= _IBN_STAGES[ibn] else "none"
            if norm != "none" and rows * columns == 1:
                raise ContractError(
                    f"backbone.ibn: found maps of a single position in stage {number} for images of {height}x{width}; "
                    'instance norms expect more: take larger images, or write ibn = "none"'
                )
            planes = base << (number - 1)
            out = 4 * planes
            stage = nn.Sequential(
                *(
                    Block(
                        out if index else channels,
                        planes,
                        radix=radix,
                        stride=1 if index else stride,
                        averages=index == 0 and (number > 1 or stride > 1),
                        dilation=dilation if index and number == stages else 1,
                        ibn=norm if norm == "a" or index == count - 1 else "none",
                    )
                    for index in range(count)
                )
            )
            channels = out
            attention = nn.ModuleList(
                NonLocal(out, non_local_channels or out // 2) for _ in range(non_local[number - 1])
            )
            setattr(self, f"layer{number}", stage)
            setattr(self, f"NL_{number}", attention)
            if number == 3:
                self.shapes["stage3.0"] = MapShape(out, rows, columns, signed=len(attention) == count)
            self.shapes[f"stage{number}{PREACT}"] = MapShape(out, rows, columns, signed=True)
            self.shapes[f"stage{number}"] = MapShape(out, rows, columns, signed=len(attention) > 0)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, want: Sequence[str], cameras: Tensor | None = None) -> Mapping[str, Tensor]:
        """(B, 3, H, W) normalised -> `{name: (B, C, H, W)}` for the wanted maps; what comes later is not computed."""
        return self.maps(self.maxpool(self.relu(self.bn1(self.conv1(images)))), want)


def _conv3x3(channels: int, out: int, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)
