"""ResNeSt backbones for reidcore.

This module only describes them: torch is imported when one is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import frozen

from reidcore import Component, hookimpl, option

if TYPE_CHECKING:
    from reid_resnest.network import ResNeSt

_RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1"


@frozen(kw_only=True)
class _ResNeStConfig:
    network: ClassVar[str]
    blocks: ClassVar[tuple[int, int, int, int]]
    stem_width: ClassVar[int]
    url: ClassVar[str]

    ibn: Literal["none", "a", "b"] = option(
        "none", help="instance norm: 'a' in half of the channels of stages 1 to 3, 'b' after stages 1 and 2"
    )
    non_local: tuple[int, int, int, int] = option(
        (0, 0, 0, 0), help="how many of the last blocks of each stage a non-local block follows", at_least=0
    )
    non_local_channels: int | None = option(
        None, help="channels inside a non-local block; half of its input's when absent", at_least=1
    )
    stages: int = option(4, help="how many stages to build; the last one's map is the default", at_least=1, at_most=4)
    last_stride: Literal[1, 2] = option(
        1,
        help="stride of the last stage; with 1 its map is as large as the one before, and its 3x3 convolutions have "
        "dilation 2 from the second block on",
    )
    radix: int = option(
        2, help="splits of each 3x3 convolution that attention weighs; 2 is the published network", at_least=1
    )
    base: int = option(
        64, help="channels inside the blocks of stage 1, with which all scale; 64 is the published network", at_least=2
    )
    weights: str = option(
        "imagenet",
        help="'imagenet' (the authors' weights), 'none', a file, or 'zoo:NAME' of FastReID's published models, as "
        "'zoo:market_bot_S50'",
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
        if self.base % self.radix:
            raise ValueError(f"found base = {self.base} with radix = {self.radix}; expected a multiple of {self.radix}")
        if self.weights == "imagenet":
            for name, published in (("ibn", "none"), ("radix", 2), ("base", 64)):
                if (found := getattr(self, name)) != published:
                    raise ValueError(
                        f"found {name} = {json.dumps(found)}, of which there are no ImageNet weights; "
                        f'write weights = "none", or {name} = {json.dumps(published)}'
                    )

    def build(self, height: int, width: int) -> ResNeSt:
        from reid_resnest.network import ResNeSt
        from reidcore.weights import leave_out, load_weights

        resnest = ResNeSt(
            self.blocks,
            height,
            width,
            stem_width=self.stem_width * self.base // 64,
            base=self.base,
            radix=self.radix,
            stages=self.stages,
            last_stride=self.last_stride,
            ibn=self.ibn,
            non_local=self.non_local,
            non_local_channels=self.non_local_channels,
        )
        unused = tuple(f"layer{number}." for number in range(self.stages + 1, 5))
        load_weights(resnest, self.network, self.weights, self.url, new=("NL_",), adapt=leave_out("fc.", *unused))
        return resnest


def _network(depth: int, blocks: tuple[int, int, int, int], stem_width: int, sha256: str) -> Component:
    name = f"resnest{depth}"
    fields = {
        "__doc__": f"ResNeSt-{depth} (Zhang et al. 2020) with maps stage1 to stage4.",
        "network": name,
        "blocks": blocks,
        "stem_width": stem_width,
        "url": f"{_RELEASE}/{name}-{sha256}.pth",
    }
    return Component(name=name, config=frozen(kw_only=True)(type(f"ResNeSt{depth}", (_ResNeStConfig,), fields)))


@hookimpl
def reidcore_backbones() -> Iterator[Component]:
    """Offer the four published networks."""
    yield _network(50, (3, 4, 6, 3), 32, "528c19ca")
    yield _network(101, (3, 4, 23, 3), 64, "22405ba7")
    yield _network(200, (3, 24, 36, 3), 64, "75117900")
    yield _network(269, (3, 30, 48, 8), 64, "0cc87c48")
