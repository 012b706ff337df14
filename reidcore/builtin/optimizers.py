"""Optimizers of the core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Named = Sequence[tuple[str, "nn.Parameter"]]


@frozen(kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015), weight decay added to the gradient."""

    lr: float = option(3.5e-4, help="learning rate after the warm-up", above=0)
    weight_decay: float = option(5e-4, help="weight decay", at_least=0)
    decay_norms: bool = option(True, help="also decay biases and norm layers")
    betas: tuple[float, float] = option((0.9, 0.999), help="decay of the moments", at_least=0, below=1)

    def build(self, parameters: Named) -> Optimizer:
        from torch.optim import Adam

        return Adam(_groups(self, parameters), lr=self.lr, betas=self.betas)


@frozen(kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    lr: float = option(3.5e-4, help="learning rate after the warm-up", above=0)
    weight_decay: float = option(0.05, help="weight decay", at_least=0)
    decay_norms: bool = option(False, help="also decay biases and norm layers")
    betas: tuple[float, float] = option((0.9, 0.999), help="decay of the moments", at_least=0, below=1)

    def build(self, parameters: Named) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(_groups(self, parameters), lr=self.lr, betas=self.betas)


@frozen(kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = option(0.01, help="learning rate after the warm-up", above=0)
    weight_decay: float = option(5e-4, help="weight decay", at_least=0)
    decay_norms: bool = option(True, help="also decay biases and norm layers")
    momentum: float = option(0.9, help="momentum", at_least=0, below=1)
    nesterov: bool = option(False, help="Nesterov's momentum")

    def build(self, parameters: Named) -> Optimizer:
        from torch.optim import SGD

        return SGD(_groups(self, parameters), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)

    def __attrs_post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("found nesterov = true and momentum = 0; expected a momentum above 0")


def _groups(config: Adam | AdamW | SGD, parameters: Named) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not; vectors are biases and norms."""
    decayed = [item for item in parameters if config.decay_norms or item[1].ndim > 1]
    spared = [item for item in parameters if not config.decay_norms and item[1].ndim <= 1]
    groups = [(decayed, config.weight_decay), (spared, 0.0)]
    return [{"params": list(items), "weight_decay": decay} for items, decay in groups if items]


@hookimpl
def reidcore_optimizers() -> Iterator[Component]:
    """Offer Adam, AdamW and SGD."""
    yield Component(name="adam", config=Adam)
    yield Component(name="adamw", config=AdamW)
    yield Component(name="sgd", config=SGD)
