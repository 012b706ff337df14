"""A head for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """A layer norm and a linear classifier: say here in one line what is special about yours."""

    epsilon: float = option(1e-5, help="added to the variance", above=0)

    def build(self, dim, classes):
        """Build it for one view's vectors of `dim` numbers; with 0 classes there is no classifier."""
        from reid_example.head import Example

        return Example(dim, classes, self.epsilon)


@hookimpl
def reidcore_heads():
    """Offer the head."""
    yield Component(name="example", config=Example)
