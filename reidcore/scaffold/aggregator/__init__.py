"""An aggregator for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option
from reidcore.errors import ContractError


@frozen(kw_only=True)
class Example:
    """The mean of the largest activations of each channel: say here in one line what is special about yours."""

    source: str | None = option(None, help="name of the map; the backbone's last when absent")
    share: float = option(0.25, help="share of the positions that count", above=0, at_most=1)

    def build(self, backbone):
        """Build it for the maps that `backbone.shapes` offers. Raises ContractError if the map is not among them."""
        from reid_example.aggregator import Example

        source = self.source or list(backbone.shapes)[-1]
        if source not in backbone.shapes:
            raise ContractError(f"aggregator.source: found '{source}'; expected one of {', '.join(backbone.shapes)}")
        return Example(source, backbone.shapes[source].channels, self.share)


@hookimpl
def reidcore_aggregators():
    """Offer the aggregator."""
    yield Component(name="example", config=Example)
