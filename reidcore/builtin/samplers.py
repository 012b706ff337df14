"""Samplers of the core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reidcore.builtin.modules.samplers import IdentityBalanced as IdentityBalancedSampler


@frozen(kw_only=True)
class IdentityBalanced:
    """P identities with K images each, from different cameras where there are several."""

    identities: int = option(16, help="P, identities a batch", at_least=1)
    instances: int = option(4, help="K, images of each", at_least=1)

    def __attrs_post_init__(self) -> None:
        if self.identities * self.instances < 2:
            raise ValueError("found a batch of one image; expected at least 2, which batch norm needs")

    def build(self, labels: NDArray[Any], cameras: NDArray[Any], seed: int) -> IdentityBalancedSampler:
        from reidcore.builtin.modules.samplers import IdentityBalanced

        return IdentityBalanced(labels, cameras, self.identities, self.instances, seed)


@hookimpl
def reidcore_samplers() -> Iterator[Component]:
    """Offer the identity-balanced sampler."""
    yield Component(name="identity-balanced", config=IdentityBalanced)
