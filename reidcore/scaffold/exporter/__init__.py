"""An exporter for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """PyTorch's own exported programs: say here in one line what is special about yours."""

    tolerance: float = option(1e-5, help="largest accepted 1 - cosine between its embeddings and the model's", above=0)

    def build(self):
        """Build it."""
        from reid_example.exporter import Example

        return Example(self.tolerance)


@hookimpl
def reidcore_exporters():
    """Offer the exporter."""
    yield Component(name="example", config=Example)
