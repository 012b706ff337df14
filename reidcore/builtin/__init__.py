"""The core's own parts, offered through the same hooks as any plugin's.

The modules here hold the config classes and import nothing heavy; what they build is in `modules/`.
"""

from types import ModuleType


def parts() -> tuple[ModuleType, ...]:
    """Return the modules that implement hooks."""
    from reidcore.builtin import (
        aggregators,
        backbones,
        datasets,
        exporters,
        heads,
        loggers,
        losses,
        metrics,
        optimizers,
        osnet,
        postprocessors,
        published,
        samplers,
        schedulers,
        tasks,
        transforms,
        vit,
    )

    return (
        backbones,
        osnet,
        vit,
        aggregators,
        heads,
        losses,
        samplers,
        metrics,
        postprocessors,
        exporters,
        datasets,
        published,
        transforms,
        optimizers,
        schedulers,
        tasks,
        loggers,
    )
