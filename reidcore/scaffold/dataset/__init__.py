"""A data set for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time
stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """Coloured squares, drawn when they are opened: say here in one line what is in yours."""

    identities: int = option(8, help="colours to train on, and as many others to test on", at_least=2)

    def build(self):
        """Return the lists of samples; images are opened later, in loader processes."""
        from reid_example.dataset import splits

        return splits(self.identities)


@hookimpl
def reidcore_datasets():
    """Offer the data set."""
    yield Component(name="example", config=Example)
