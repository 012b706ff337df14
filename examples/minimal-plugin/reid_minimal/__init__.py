"""A backbone, a loss and a data set for reidcore.

This module only describes them: it imports nothing heavy, so that listing components stays fast.
"""

from attrs import frozen

from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class TinyNet:
    """Three strided convolutions: a backbone to try things with."""

    channels: int = option(32, help="channels of its map", at_least=1)

    def build(self, height, width):
        from reid_minimal.parts import TinyNet

        return TinyNet(self.channels, height, width)


@frozen(kw_only=True)
class Spread:
    """Push the embeddings of a batch apart, whatever their identity."""

    scale: float = option(1.0, help="how sharply near neighbours count", above=0)

    def build(self, parts):
        from reid_minimal.parts import Spread

        return Spread(self.scale)


@frozen(kw_only=True)
class Squares:
    """Coloured squares: an identity is a colour, a camera a background."""

    identities: int = option(8, help="colours for training, and as many others for testing", at_least=2)

    def build(self):
        from reid_minimal.squares import squares

        return squares(self.identities)


@hookimpl
def reidcore_backbones():
    yield Component(name="tiny-net", config=TinyNet)


@hookimpl
def reidcore_losses():
    yield Component(name="spread", config=Spread)


@hookimpl
def reidcore_datasets():
    yield Component(name="squares", config=Squares)
