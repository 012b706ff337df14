"""A post-processor for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time
stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """Takes the gallery's mean off all embeddings: say here in one line what is special about yours."""

    strength: float = option(1.0, help="share of the mean that is taken off", at_least=0, at_most=1)

    def build(self):
        """Build it."""
        from reid_example.postprocessor import Example

        return Example(self.strength)


@hookimpl
def reidcore_postprocessors():
    """Offer the post-processor."""
    yield Component(name="example", config=Example)
