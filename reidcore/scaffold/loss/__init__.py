"""A loss for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """A contrastive loss of cosines: say here in one line what is special about yours."""

    margin: float = option(0.5, help="cosine up to which other identities may come near", at_least=-1, below=1)

    def build(self, parts):
        """Build it for the model in `parts.model`, with `parts.classes` classes."""
        from reid_example.loss import Example

        return Example(self.margin)


@hookimpl
def reidcore_losses():
    """Offer the loss."""
    yield Component(name="example", config=Example)
