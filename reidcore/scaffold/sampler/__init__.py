"""A sampler for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time
stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """Batches of whole identities, all of their images: say here in one line what is special about yours."""

    images: int = option(64, help="images a batch, or more if its last identity has more", at_least=2)

    def build(self, labels, cameras, seed):
        """Build it for N images: labels (N,), -1 where unlabelled; cameras (N,)."""
        from reid_example.sampler import Example

        return Example(labels, self.images, seed)


@hookimpl
def reidcore_samplers():
    """Offer the sampler."""
    yield Component(name="example", config=Example)
