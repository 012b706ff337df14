"""Heads of the core (paper, section 3.4), and OSNet's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.heads import ClassifierHead, FullyConnectedHead, ReductionHead


@frozen(kw_only=True)
class _Classified:
    classifier: Literal["linear", "cosine"] = option(
        "linear", help="logits are products with the classifier's rows, or cosines, for losses that add a margin"
    )


@frozen(kw_only=True)
class Linear(_Classified):
    """A bias-free classifier on the pooled vector."""

    def build(self, dim: int, classes: int) -> ClassifierHead:
        from reidcore.builtin.modules.heads import ClassifierHead

        return ClassifierHead(dim, classes, neck=False, logits=self.classifier)


@frozen(kw_only=True)
class BNNeck(_Classified):
    """Batch norm, then a bias-free classifier (equation 5; Luo et al. 2019)."""

    embed: Literal["after", "before"] = option(
        "after", help="whether retrieval compares what is after or before the norm"
    )

    def build(self, dim: int, classes: int) -> ClassifierHead:
        from reidcore.builtin.modules.heads import ClassifierHead

        return ClassifierHead(dim, classes, neck=True, embed=self.embed, logits=self.classifier)


@frozen(kw_only=True)
class Reduction(_Classified):
    """A layer with batch norm, ReLU and dropout, then one that reduces, then a bias-free classifier (Figure 3)."""

    dim: int = option(512, help="dimension of the reduced vector, which is compared and classified", at_least=1)
    dropout: float = option(0.5, help="share of values set to 0 before the reduction in training", at_least=0, below=1)

    def build(self, dim: int, classes: int) -> ReductionHead:
        from reidcore.builtin.modules.heads import ReductionHead

        return ReductionHead(dim, classes, self.dim, self.dropout, self.classifier)


@frozen(kw_only=True)
class FullyConnected(_Classified):
    """A linear layer with batch norm and ReLU, then a bias-free classifier, as OSNet has it (Zhou et al. 2019)."""

    dim: int = option(512, help="dimension of the layer's vector, which is compared and classified", at_least=1)

    def build(self, dim: int, classes: int) -> FullyConnectedHead:
        from reidcore.builtin.modules.heads import FullyConnectedHead

        return FullyConnectedHead(dim, classes, self.dim, self.classifier)


@hookimpl
def reidcore_heads() -> Iterator[Component]:
    """Offer the paper's three heads, and OSNet's."""
    yield Component(name="linear", config=Linear)
    yield Component(name="bnneck", config=BNNeck)
    yield Component(name="reduction", config=Reduction)
    yield Component(name="fc", config=FullyConnected)
