"""Samplers of the core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reidcore.builtin.modules import samplers as modules


@frozen(kw_only=True)
class _Groups:
    """P identities with K images each."""

    identities: int = option(16, help="P, identities a batch", at_least=1)
    instances: int = option(4, help="K, images of each", at_least=1)

    def __attrs_post_init__(self) -> None:
        if self.identities * self.instances < 2:
            raise ValueError("found a batch of one image; expected at least 2, which batch norm needs")


@frozen(kw_only=True)
class IdentityBalanced(_Groups):
    """P identities with K images each, from different cameras where there are several."""

    def build(self, labels: NDArray[Any], cameras: NDArray[Any], seed: int) -> modules.IdentityBalanced:
        from reidcore.builtin.modules.samplers import IdentityBalanced

        return IdentityBalanced(labels, cameras, self.identities, self.instances, seed)


@frozen(kw_only=True)
class Naive(_Groups):
    """P identities with K images each, whatever their cameras; what does not fill K waits for the next round."""

    def build(self, labels: NDArray[Any], cameras: NDArray[Any], seed: int) -> modules.Naive:
        from reidcore.builtin.modules.samplers import Naive

        return Naive(labels, self.identities, self.instances, seed)


@frozen(kw_only=True)
class WeightedSets(_Groups):
    """P identities with K images each, of which every [[train]] table has its share."""

    weights: tuple[float, ...] = option(help="share of each [[train]] table's identities: [2, 1]", above=0)

    def build(
        self, labels: NDArray[Any], cameras: NDArray[Any], seed: int, sources: NDArray[Any]
    ) -> modules.WeightedSets:
        from reidcore.builtin.modules.samplers import WeightedSets

        return WeightedSets(labels, sources, self.weights, self.identities, self.instances, seed)


@frozen(kw_only=True)
class ClassBalanced:
    """Images drawn with replacement, each class as often as any other."""

    batch: int = option(64, help="images a batch", at_least=2)

    def build(self, labels: NDArray[Any], cameras: NDArray[Any], seed: int) -> modules.ClassBalanced:
        from reidcore.builtin.modules.samplers import ClassBalanced

        return ClassBalanced(labels, self.batch, seed)


@frozen(kw_only=True)
class Shuffle:
    """All images in random order, unlabelled ones too; those that do not fill a last batch are left out."""

    batch: int = option(64, help="images a batch", at_least=2)

    def build(self, labels: NDArray[Any], cameras: NDArray[Any], seed: int) -> modules.Shuffle:
        from reidcore.builtin.modules.samplers import Shuffle

        return Shuffle(labels, self.batch, seed)


@hookimpl
def reidcore_samplers() -> Iterator[Component]:
    """Offer what chooses the images of every batch."""
    yield Component(name="identity-balanced", config=IdentityBalanced)
    yield Component(name="naive", config=Naive)
    yield Component(name="weighted-sets", config=WeightedSets)
    yield Component(name="class-balanced", config=ClassBalanced)
    yield Component(name="shuffle", config=Shuffle)
