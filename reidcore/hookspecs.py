"""The hooks: one a kind. A plugin implements those of the kinds it offers.

Every hook has the same shape: it takes no arguments and yields `Component(name, config)` descriptions, never built
parts. All are called once, when the catalog is made and before torch is imported, so the module that implements them
imports nothing heavy: a config's `build` does. For example, in the module that a package names in its entry-point
group `reidcore`:

    from attrs import frozen
    from reidcore import Component, hookimpl, option

    @frozen(kw_only=True)
    class MaxPool:
        '''Global max pooling of one feature map.'''

        source: str = option("stage4", help="name of the map")

        def build(self, backbone):
            from reid_maxpool.pool import Pool
            return Pool(self.source, backbone.shapes[self.source].channels)

    @hookimpl
    def reidcore_aggregators():
        yield Component(name="maxpool", config=MaxPool)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from reidcore.component import Component

hookspec = HookspecMarker("reidcore")
hookimpl = HookimplMarker("reidcore")


@hookspec
def reidcore_backbones() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer backbones: what turns an image into feature maps.

    Their configs follow `reidcore.kinds.BackboneConfig`.
    """


@hookspec
def reidcore_aggregators() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer aggregators: what turns feature maps into one vector a view.

    Their configs follow `reidcore.kinds.AggregatorConfig`.
    """


@hookspec
def reidcore_heads() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer heads: what turns a vector into an embedding and class scores.

    Their configs follow `reidcore.kinds.HeadConfig`.
    """


@hookspec
def reidcore_losses() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer losses: terms of the training objective.

    Their configs follow `reidcore.kinds.LossConfig`.
    """


@hookspec
def reidcore_samplers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer samplers: what chooses the images of every batch.

    Their configs follow `reidcore.kinds.SamplerConfig`.
    """


@hookspec
def reidcore_metrics() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer metrics: what judges a ranking.

    Their configs follow `reidcore.kinds.MetricConfig`.
    """


@hookspec
def reidcore_postprocessors() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer post-processors: what improves features or distances after extraction.

    Their configs follow `reidcore.kinds.PostprocessorConfig`.
    """


@hookspec
def reidcore_exporters() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer exporters: what writes a model for another engine.

    Their configs follow `reidcore.kinds.ExporterConfig`.
    """


@hookspec
def reidcore_datasets() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer data sets: lists of labelled images.

    Their configs follow `reidcore.kinds.DatasetConfig`.
    """


@hookspec
def reidcore_transforms() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer transforms: what changes a training image.

    Their configs follow `reidcore.kinds.TransformConfig`.
    """


@hookspec
def reidcore_optimizers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer optimizers.

    Their configs follow `reidcore.kinds.OptimizerConfig`.
    """


@hookspec
def reidcore_schedulers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer schedules of the learning rate.

    Their configs follow `reidcore.kinds.SchedulerConfig`.
    """


@hookspec
def reidcore_tasks() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer tasks: what is learned, while the loop says when.

    Their configs follow `reidcore.kinds.TaskConfig`.
    """


@hookspec
def reidcore_loggers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer loggers: receivers of what a run reports.

    Their configs follow `reidcore.kinds.LoggerConfig`.
    """
