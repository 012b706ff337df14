"""A schedule for reidcore.

This module describes what the package offers and is imported whenever anything is listed: imports that take time would
stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """The square root's decline to 0: say here in one line what is special about yours."""

    flat: float = option(0.3, help="share of the training before the decline", at_least=0, below=1)

    def build(self, steps_per_epoch, epochs):
        """Build it for the length of the training."""
        from reid_example.scheduler import Example

        return Example(self.flat, steps_per_epoch * epochs)


@hookimpl
def reidcore_schedulers():
    """Offer the schedule."""
    yield Component(name="example", config=Example)
