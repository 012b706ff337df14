"""Backbones of the core: ResNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.resnet import ResNet


@frozen(kw_only=True)
class _ResNetConfig:
    depth: ClassVar[int]

    last_stride: Literal[1, 2] = option(
        1, help="stride of the last stage; with 1 its map is as large as the one before"
    )
    base: int = option(
        64, help="channels of the stem, with which all stages scale; 64 is the published network", at_least=1
    )
    stem_stride: Literal[2, 4] = option(2, help="stride of the first layer; 4 takes a quarter of the time")
    stages: int = option(4, help="how many stages to build; the last one's map is the default", at_least=1, at_most=4)
    weights: str = option("imagenet", help="'imagenet' (torchvision's), 'none' or a file of weights")

    def __attrs_post_init__(self) -> None:
        for name, published in (("base", 64), ("stem_stride", 2)):
            if self.weights == "imagenet" and (found := getattr(self, name)) != published:
                raise ValueError(
                    f'found {name} = {found}, of which there are no ImageNet weights; write weights = "none"'
                )

    def build(self, height: int, width: int) -> ResNet:
        from reidcore.builtin.modules.resnet import ResNet, load_weights

        resnet = ResNet(
            self.depth,
            height,
            width,
            last_stride=self.last_stride,
            base=self.base,
            stem_stride=self.stem_stride,
            stages=self.stages,
        )
        load_weights(resnet, f"resnet{self.depth}", self.weights)
        return resnet


def _resnet(depth: int) -> type:
    doc = f"ResNet-{depth} (He et al. 2016) with maps stage1 to stage4."
    return frozen(kw_only=True)(type(f"ResNet{depth}", (_ResNetConfig,), {"depth": depth, "__doc__": doc}))


_RESNETS = {f"resnet{depth}": _resnet(depth) for depth in (18, 34, 50, 101, 152)}


@hookimpl
def reidcore_backbones() -> Iterator[Component]:
    """Offer ResNet."""
    for name, config in _RESNETS.items():
        yield Component(name=name, config=config)
