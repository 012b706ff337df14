"""A logger for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time
stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """A CSV file of the losses: say here in one line what is special about yours."""

    file: str = option("losses.csv", help="name of the file in the run folder")

    def build(self, folder):
        """Build it for the run folder, a Path."""
        from reid_example.logger import Example

        return Example(folder / self.file)


@hookimpl
def reidcore_loggers():
    """Offer the logger."""
    yield Component(name="example", config=Example)
