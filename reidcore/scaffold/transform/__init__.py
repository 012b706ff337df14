"""A transform for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """Makes some images darker: say here in one line what is special about yours."""

    probability: float = option(0.5, help="share of the images that are changed", at_least=0, at_most=1)
    darkest: float = option(0.4, help="least factor on the pixels", at_least=0, at_most=1)

    def build(self, height, width):
        """Build it for an input size of `height` by `width` pixels."""
        from reid_example.transform import Example

        return Example(self.probability, self.darkest)


@hookimpl
def reidcore_transforms():
    """Offer the transform."""
    yield Component(name="example", config=Example)
