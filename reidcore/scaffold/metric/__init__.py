"""A metric for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time
stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """R-precision: say here in one line what is special about yours."""

    label: str = option("R-precision", help="what results call it")

    def build(self):
        """Build it."""
        from reid_example.metric import Example

        return Example(self.label)


@hookimpl
def reidcore_metrics():
    """Offer the metric."""
    yield Component(name="example", config=Example)
