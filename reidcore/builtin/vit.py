"""The vision transformer as a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.vit import VisionTransformer


@frozen(kw_only=True)
class _VisionTransformer:
    name: ClassVar[str]
    dim: ClassVar[int]
    layers: ClassVar[int]
    heads: ClassVar[int]

    stride: int = option(16, help="pixels between patches of 16; 12 lets them overlap", at_least=1, at_most=16)
    cameras: int = option(
        0, help="cameras with an embedding, numbered from 0 (7 for cameras 1 to 6); 0 for none", at_least=0
    )
    camera_weight: float = option(3.0, help="factor on the camera embedding")
    camera_dropout: float = option(
        0.1, help="share of training images whose camera counts as unknown", at_least=0, at_most=1
    )
    drop_path: float = option(
        0.1, help="probability to drop a branch of the last layer in training", at_least=0, below=1
    )
    weights: str = option("none", help="'none', or a file of weights with torchvision's names")

    def __attrs_post_init__(self) -> None:
        if self.weights == "imagenet" and self.name != "vit-base":
            raise ValueError(
                'found weights = "imagenet", which are published for vit-base only; write weights = "none" or a file'
            )

    def build(self, height: int, width: int) -> VisionTransformer:
        from reidcore.builtin.modules.vit import VisionTransformer, load_vit_weights

        vit = VisionTransformer(
            self.dim,
            self.layers,
            self.heads,
            height,
            width,
            stride=self.stride,
            drop_path=self.drop_path,
            cameras=self.cameras,
            camera_weight=self.camera_weight,
            camera_dropout=self.camera_dropout,
        )
        load_vit_weights(vit, self.name, self.weights)
        return vit


@frozen(kw_only=True)
class TinyVisionTransformer(_VisionTransformer):
    """Vision transformer (Dosovitskiy et al. 2021) of 192 channels, with maps patches and token, the class token."""

    name, dim, layers, heads = "vit-tiny", 192, 12, 3


@frozen(kw_only=True)
class SmallVisionTransformer(_VisionTransformer):
    """Vision transformer (Dosovitskiy et al. 2021) of 384 channels, with maps patches and token, the class token."""

    name, dim, layers, heads = "vit-small", 384, 12, 6


@frozen(kw_only=True)
class BaseVisionTransformer(_VisionTransformer):
    """Vision transformer (Dosovitskiy et al. 2021) of 768 channels, with maps patches and token, the class token."""

    name, dim, layers, heads = "vit-base", 768, 12, 12

    weights: str = option("imagenet", help="'imagenet' (torchvision's), 'none' or a file of weights")


@hookimpl
def reidcore_backbones() -> Iterator[Component]:
    """Offer the vision transformer in three sizes."""
    for config in (TinyVisionTransformer, SmallVisionTransformer, BaseVisionTransformer):
        yield Component(name=config.name, config=config)
