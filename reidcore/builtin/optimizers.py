"""Optimizers of the core."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Named = Sequence[tuple[str, "nn.Parameter"]]


@frozen(kw_only=True)
class Factors:
    """Factors by part of the model. A parameter of two parts, such as a bias of the head, has the product."""

    backbone: float = option(1.0, help="factor for the backbone, and an aggregator's copies of its tail", at_least=0)
    head: float = option(1.0, help="factor for all of the heads", at_least=0)
    norm: float = option(1.0, help="factor for norm layers and other vectors, such as GeM's exponent", at_least=0)
    bias: float = option(1.0, help="factor for the biases of all other layers", at_least=0)

    def of(self, parts: Sequence[str]) -> float:
        """Return the factor of a parameter that belongs to these parts."""
        factors: list[float] = [getattr(self, part) for part in parts]
        return math.prod(factors)


@frozen(kw_only=True)
class MatrixFactors(Factors):
    """The same, with norm layers and biases left out."""

    norm: float = option(0.0, help="factor for norm layers and other vectors, such as GeM's exponent", at_least=0)
    bias: float = option(0.0, help="factor for the biases of all other layers", at_least=0)


@frozen(kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015), weight decay added to the gradient."""

    lr: float = option(3.5e-4, help="learning rate after the warm-up", above=0)
    lr_factors: Factors = option(factory=Factors, help="factors on the learning rate by part")
    weight_decay: float = option(5e-4, help="weight decay", at_least=0)
    decay_factors: Factors = option(factory=Factors, help="factors on the weight decay by part")
    betas: tuple[float, float] = option((0.9, 0.999), help="decay of the moments", at_least=0, below=1)

    def build(self, parameters: Named) -> Optimizer:
        from torch.optim import Adam

        return Adam(_groups(self, parameters), lr=self.lr, betas=self.betas)


@frozen(kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    lr: float = option(3.5e-4, help="learning rate after the warm-up", above=0)
    lr_factors: Factors = option(factory=Factors, help="factors on the learning rate by part")
    weight_decay: float = option(0.05, help="weight decay", at_least=0)
    decay_factors: MatrixFactors = option(factory=MatrixFactors, help="factors on the weight decay by part")
    betas: tuple[float, float] = option((0.9, 0.999), help="decay of the moments", at_least=0, below=1)

    def build(self, parameters: Named) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(_groups(self, parameters), lr=self.lr, betas=self.betas)


@frozen(kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = option(0.01, help="learning rate after the warm-up", above=0)
    lr_factors: Factors = option(factory=Factors, help="factors on the learning rate by part")
    weight_decay: float = option(5e-4, help="weight decay", at_least=0)
    decay_factors: Factors = option(factory=Factors, help="factors on the weight decay by part")
    momentum: float = option(0.9, help="momentum", at_least=0, below=1)
    nesterov: bool = option(False, help="Nesterov's momentum")

    def build(self, parameters: Named) -> Optimizer:
        from torch.optim import SGD

        return SGD(_groups(self, parameters), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)

    def __attrs_post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("found nesterov = true and momentum = 0; expected a momentum above 0")


def _groups(config: Adam | AdamW | SGD, parameters: Named) -> list[dict[str, Any]]:
    """Split parameters by their parts, whatever the factors, so that a run can be resumed with other ones."""
    dimensions = {name: parameter.ndim for name, parameter in parameters}
    groups: dict[tuple[str, ...], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault(_parts(name, dimensions), []).append(parameter)
    return [
        {
            "params": group,
            "lr": config.lr * config.lr_factors.of(parts),
            "weight_decay": config.weight_decay * config.decay_factors.of(parts),
        }
        for parts, group in groups.items()
    ]


def _parts(name: str, dimensions: Mapping[str, int]) -> tuple[str, ...]:
    """Return the fields of `Factors` that concern a parameter.

    Only names and shapes are known: a layer whose weight has one dimension is a norm.
    """
    place = None
    if name.startswith(("backbone.", "aggregator.tails.")):
        place = "backbone"
    elif name.startswith("heads."):
        place = "head"
    layer = name.removesuffix("bias")
    if dimensions[name] > 1:
        form = None
    elif layer != name and dimensions.get(f"{layer}weight") != 1:
        form = "bias"
    else:
        form = "norm"
    return tuple(part for part in (place, form) if part)


@hookimpl
def reidcore_optimizers() -> Iterator[Component]:
    """Offer Adam, AdamW and SGD."""
    yield Component(name="adam", config=Adam)
    yield Component(name="adamw", config=AdamW)
    yield Component(name="sgd", config=SGD)
