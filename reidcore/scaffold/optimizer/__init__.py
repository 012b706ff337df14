"""An optimizer for reidcore.

This module describes what the package offers and is imported whenever anything is listed: the imports that take time,
torch above all, stand in `build`.
"""

from attrs import frozen
from reidcore import Component, hookimpl, option


@frozen(kw_only=True)
class Example:
    """The sign of the momentum (Lion, Chen et al. 2023): say here in one line what is special about yours."""

    lr: float = option(1e-4, help="learning rate after the warm-up", above=0)
    betas: tuple[float, float] = option((0.9, 0.99), help="decay of the momentum", at_least=0, below=1)
    weight_decay: float = option(0.01, help="weight decay", at_least=0)

    def build(self, parameters):
        """Build it for [(name, parameter), ...]: names begin with backbone, aggregator, heads or losses."""
        from reid_example.optimizer import Example

        matrices = [parameter for _, parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for _, parameter in parameters if parameter.ndim < 2]  # biases and norms do not decay
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return Example(groups, self.lr, self.betas, self.weight_decay)


@hookimpl
def reidcore_optimizers():
    """Offer the optimizer."""
    yield Component(name="example", config=Example)
