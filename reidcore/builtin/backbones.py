"""Backbones of the core: ResNet and ResNeXt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.resnet import ResNet

_TORCHVISION = "https://download.pytorch.org/models"
_IBN_NET = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0"

# ImageNet weights by network, ibn and se. Torchvision's are its first version: V2's recipe transfers less well.
_IMAGENET = {
    ("resnet18", "none", False): f"{_TORCHVISION}/resnet18-f37072fd.pth",
    ("resnet34", "none", False): f"{_TORCHVISION}/resnet34-b627a593.pth",
    ("resnet50", "none", False): f"{_TORCHVISION}/resnet50-0676ba61.pth",
    ("resnet101", "none", False): f"{_TORCHVISION}/resnet101-63fe2227.pth",
    ("resnet152", "none", False): f"{_TORCHVISION}/resnet152-394f9c45.pth",
    ("resnext50-32x4d", "none", False): f"{_TORCHVISION}/resnext50_32x4d-7cdf4587.pth",
    ("resnext101-32x8d", "none", False): f"{_TORCHVISION}/resnext101_32x8d-8ba56ff5.pth",
    ("resnet18", "a", False): f"{_IBN_NET}/resnet18_ibn_a-2f571257.pth",
    ("resnet34", "a", False): f"{_IBN_NET}/resnet34_ibn_a-94bc1577.pth",
    ("resnet50", "a", False): f"{_IBN_NET}/resnet50_ibn_a-d9d0bb7b.pth",
    ("resnet101", "a", False): f"{_IBN_NET}/resnet101_ibn_a-59ea0ac6.pth",
    ("resnet101", "a", True): f"{_IBN_NET}/se_resnet101_ibn_a-fabed4e2.pth",
    ("resnext101-32x4d", "a", False): f"{_IBN_NET}/resnext101_ibn_a-6ace051d.pth",
    ("resnet18", "b", False): f"{_IBN_NET}/resnet18_ibn_b-bc2f3c11.pth",
    ("resnet34", "b", False): f"{_IBN_NET}/resnet34_ibn_b-04134c37.pth",
    ("resnet50", "b", False): f"{_IBN_NET}/resnet50_ibn_b-9ca61e85.pth",
    ("resnet101", "b", False): f"{_IBN_NET}/resnet101_ibn_b-c55f6dba.pth",
}


@frozen(kw_only=True)
class _ResNetConfig:
    network: ClassVar[str]
    blocks: ClassVar[tuple[int, int, int, int]]
    bottleneck: ClassVar[bool]
    groups: ClassVar[int]
    group_width: ClassVar[int]

    ibn: Literal["none", "a", "b"] = option(
        "none", help="instance norm: 'a' in half of the channels of stages 1 to 3, 'b' after stages 1 and 2"
    )
    se: bool = option(False, help="squeeze-excitation in each block")
    non_local: tuple[int, int, int, int] = option(
        (0, 0, 0, 0), help="how many of the last blocks of each stage a non-local block follows", at_least=0
    )
    non_local_channels: int | None = option(
        None, help="channels inside a non-local block; half of its input's when absent", at_least=1
    )
    stages: int = option(4, help="how many stages to build; the last one's map is the default", at_least=1, at_most=4)
    last_stride: Literal[1, 2] = option(
        1, help="stride of the last stage; with 1 its map is as large as the one before"
    )
    stem_stride: Literal[2, 4] = option(2, help="stride of the first layer; 4 takes a quarter of the time")
    stem_pool: Literal["pad1", "ceil"] = option(
        "pad1", help="max pooling of the stem: padded by 1 as published, or its size rounded up without padding"
    )
    base: int = option(
        64, help="channels of the stem, with which all stages scale; 64 is the published network", at_least=2
    )
    weights: str = option(
        "imagenet",
        help="'imagenet' (torchvision's, or IBN-Net's for ibn), 'none', a file, or 'zoo:NAME' of FastReID's published "
        "models, as 'zoo:market_sbs_R50'",
    )

    def __attrs_post_init__(self) -> None:
        for number, (found, blocks) in enumerate(zip(self.non_local, self.blocks, strict=True), 1):
            if found and number > self.stages:
                raise ValueError(
                    f"found {found} non-local blocks in stage {number}, but stages = {self.stages}; expected 0"
                )
            if found > blocks:
                raise ValueError(
                    f"found {found} non-local blocks in stage {number} of {self.network}, which has {blocks} blocks; "
                    f"expected at most {blocks}"
                )
        if self.base * self.group_width % 64:
            raise ValueError(f"found base = {self.base}; expected a multiple of {64 // self.group_width}")
        if self.weights == "imagenet":
            self._require_published()

    def _require_published(self) -> None:
        for name, published in (("base", 64), ("stem_stride", 2)):
            if (found := getattr(self, name)) != published:
                raise ValueError(
                    f'found {name} = {found}, of which there are no ImageNet weights; write weights = "none"'
                )
        if (self.network, self.ibn, self.se) not in _IMAGENET:
            choices = [_choice(ibn, se) for network, ibn, se in _IMAGENET if network == self.network]
            raise ValueError(
                f"found {_choice(self.ibn, self.se)}, of which there are no ImageNet weights of {self.network}; "
                f'write weights = "none", or choose {" or ".join(choices)}'
            )

    def build(self, height: int, width: int) -> ResNet:
        from reidcore.builtin.modules.resnet import ResNet
        from reidcore.weights import leave_out, load_weights

        resnet = ResNet(
            self.blocks,
            height,
            width,
            bottleneck=self.bottleneck,
            groups=self.groups,
            group_width=self.group_width,
            base=self.base,
            stem_stride=self.stem_stride,
            stem_pool=self.stem_pool,
            stages=self.stages,
            last_stride=self.last_stride,
            ibn=self.ibn,
            se=self.se,
            non_local=self.non_local,
            non_local_channels=self.non_local_channels,
        )
        url = _IMAGENET.get((self.network, self.ibn, self.se), "")
        unused = tuple(f"layer{number}." for number in range(self.stages + 1, 5))
        load_weights(resnet, self.network, self.weights, url, new=("NL_",), adapt=leave_out("fc.", *unused))
        return resnet


def _choice(ibn: str, se: bool) -> str:
    return f'ibn = "{ibn}" {"with" if se else "without"} se'


def _network(
    title: str, blocks: tuple[int, int, int, int], *, bottleneck: bool = True, groups: int = 1, group_width: int = 64
) -> Component:
    name = title.lower().replace("-", "", 1)
    paper = "Xie et al. 2017" if groups > 1 else "He et al. 2016"
    fields = {
        "__doc__": f"{title} ({paper}) with maps stage1 to stage4.",
        "network": name,
        "blocks": blocks,
        "bottleneck": bottleneck,
        "groups": groups,
        "group_width": group_width,
    }
    return Component(name=name, config=frozen(kw_only=True)(type(title.replace("-", ""), (_ResNetConfig,), fields)))


_RESNETS = (
    _network("ResNet-18", (2, 2, 2, 2), bottleneck=False),
    _network("ResNet-34", (3, 4, 6, 3), bottleneck=False),
    _network("ResNet-50", (3, 4, 6, 3)),
    _network("ResNet-101", (3, 4, 23, 3)),
    _network("ResNet-152", (3, 8, 36, 3)),
    _network("ResNeXt-50-32x4d", (3, 4, 6, 3), groups=32, group_width=4),
    _network("ResNeXt-101-32x4d", (3, 4, 23, 3), groups=32, group_width=4),
    _network("ResNeXt-101-32x8d", (3, 4, 23, 3), groups=32, group_width=8),
)


@hookimpl
def reidcore_backbones() -> Iterator[Component]:
    """Offer ResNet and ResNeXt."""
    yield from _RESNETS
