"""ResNet and ResNeXt, with torchvision's parameter names, as backbones. B batch, C channels, H W map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from reidcore.errors import ContractError
from reidcore.layers import (
    PREACT,
    InstanceBatchNorm,
    InstanceNorm,
    NonLocal,
    ResidualBlock,
    ResidualStages,
    SqueezeExcitation,
)
from reidcore.types import MapShape

IBN = Literal["none", "a", "b"]

_IBN_STAGES = {"none": 0, "a": 3, "b": 2}


class Block(ResidualBlock):
    """A residual block: relu(IN(se(branch(x)) + shortcut(x))), where `se` and `IN` may be the identity.

    The branch is two 3x3 convolutions, or in a `bottleneck` 1x1, 3x3 and 1x1, each with a batch norm. The last one
    starts with scale 0, and so the branch at nothing (Goyal et al. 2017).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out: int,
        *,
        bottleneck: bool,
        stride: int = 1,
        groups: int = 1,
        ibn: IBN = "none",
        se: bool = False,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False) if bottleneck else _conv3x3(channels, width, stride)
        self.bn1 = InstanceBatchNorm(width) if ibn == "a" else nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, groups) if bottleneck else _conv3x3(width, out)
        self.bn2 = nn.BatchNorm2d(width if bottleneck else out)
        if bottleneck:
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        nn.init.zeros_(self.bn3.weight if bottleneck else self.bn2.weight)
        self.se = SqueezeExcitation(out) if se else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.IN = InstanceNorm(out) if ibn == "b" else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def sums(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W') before the ReLU."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            out = self.bn3(self.conv3(self.relu(out)))
        out = self.se(out)
        out += self.downsample(x)
        out = self.IN(out)
        return out


class ResNet(ResidualStages):
    """ResNet (He et al. 2016), or with `groups` ResNeXt (Xie et al. 2017), without its classifier.

    It offers the maps `stage1` to `stage4`, and `stage3.0` after the first block of stage 3, where multi-granularity
    networks branch, and `stage1.preact` to `stage4.preact` before the last ReLU of a stage. `blocks` are the residual
    blocks of each stage; only the first `stages` are built, and the last of them has `last_stride`: with 1 the map of
    stage 4 is at 1/16 of the image (Sun et al. 2018). A `stem_stride` of 4 halves the height and width of every map.
    `base` is the number of channels of the stem, 64 in the published networks; the stages scale with it. The stem's max
    pooling pads by 1 as in the published networks, or rounds its size up without padding (`stem_pool` "ceil").

    `ibn` "a" is instance norm in half of the first norm's channels of the blocks of stages 1 to 3; "b" is instance norm
    at the end of stages 1 and 2, and in place of the stem's batch norm (Pan et al. 2018, as released). `se` adds
    squeeze-excitation to each block.

    `non_local` says how many of the last blocks of each stage a non-local block follows. They compute with half of
    the channels as published (Wang et al. 2018), or with `non_local_channels`: the released code of AGW (Ye et al.
    2021) has 1, so that all positions are compared by one number. The map that ends in such a block is signed.

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
        bottleneck: bool,
        groups: int = 1,
        group_width: int = 64,
        base: int = 64,
        stem_stride: int = 2,
        stem_pool: Literal["pad1", "ceil"] = "pad1",
        stages: int = 4,
        last_stride: int = 1,
        ibn: IBN = "none",
        se: bool = False,
        non_local: Sequence[int] = (0, 0, 0, 0),
        non_local_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.conv1 = nn.Conv2d(3, base, 7, stride=stem_stride, padding=3, bias=False)
        self.bn1 = InstanceNorm(base) if ibn == "b" else nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        pad = stem_pool == "pad1"
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=int(pad), ceil_mode=not pad)
        self.shapes: dict[str, MapShape] = {}
        rows, columns = ((-(-length // stem_stride) + pad) // 2 for length in (height, width))
        channels = base
        strides = [1, 2, 2, 2][:stages]
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
            out = planes * 4 if bottleneck else planes
            stage = nn.Sequential(
                *(
                    Block(
                        out if index else channels,
                        planes * group_width // 64 * groups,
                        out,
                        bottleneck=bottleneck,
                        stride=1 if index else stride,
                        groups=groups,
                        ibn=norm if norm == "a" or index == count - 1 else "none",
                        se=se,
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


def _conv3x3(channels: int, out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=1, groups=groups, bias=False)
