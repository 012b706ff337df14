"""The models of timm (PyTorch Image Models, Wightman 2019) as a backbone for reidcore.

This module only describes it: it imports nothing heavy, so that listing components stays fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore import Component, hookimpl, option

if TYPE_CHECKING:
    from reid_timm.backbone import TimmBackbone


@frozen(kw_only=True)
class Timm:
    """Any timm model, with maps stage1 and on, or patches and token of a transformer of one resolution."""

    model: str = option(help="timm's name of it, as 'convnext_tiny' or, with the weights' tag, 'convnext_tiny.in12k'")
    weights: str = option(
        "pretrained", help="'pretrained' (the tag's, or timm's choice), 'none', or a file of the model's weights"
    )
    drop_path: float = option(
        0.0, help="probability to drop a residual branch of the last block in training", at_least=0, below=1
    )
    output_stride: Literal[8, 16] | None = option(
        None, help="pixels between positions of the last map of a convolutional model; as published when absent"
    )

    def build(self, height: int, width: int) -> TimmBackbone:
        from reid_timm.backbone import TimmBackbone

        return TimmBackbone(
            self.model,
            height,
            width,
            weights=self.weights,
            drop_path=self.drop_path,
            output_stride=self.output_stride,
        )


@hookimpl
def reidcore_backbones() -> Iterator[Component]:
    """Offer timm's models."""
    yield Component(name="timm", config=Timm)
