"""A task for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """Training on one half of the identities at a time: say here in one line what is special about yours."""

    turn: int = option(1, help="epochs until the other half has its turn", at_least=1)

    def build(self):
        """Build it."""
        from reid_example.task import Example

        return Example(self.turn)


@hookimpl
def reidcore_tasks():
    """Offer the task."""
    yield Component(name="example", config=Example)
