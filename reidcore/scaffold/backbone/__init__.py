"""A backbone for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """Three strided convolutions: say here in one line what is special about yours."""

    channels: int = option(64, help="channels of its map", at_least=1)
    weights: str = option("none", help="'none', or a file of weights")

    def build(self, height, width):
        """Build it for images of `height` by `width` pixels; on the meta device too, where no file is read."""
        from reidcore.weights import load_weights

        from reid_example.backbone import Example

        network = Example(self.channels, height, width)
        load_weights(network, "example", self.weights)
        return network


@hookimpl
def reidcore_backbones():
    """Offer the backbone."""
    yield Component(name="example", config=Example)
