"""The kinds of parts: for each, what its config's `build` takes and what the built part can do.

Shapes: B batch, D embedding, C channels, H W map, Q G queries and gallery, K classes.
Any built part may also have `after_step(run)` or `after_epoch(run)`, which the training loop calls, and
`state_dict`/`load_state_dict`, which make it part of checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import frozen

from reidcore.types import Batch, Extra, Features, HeadOut, MapShape, Needs, Output, Parts, Splits, Step, Stream, Views

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from reidcore.retrieval import Problem, RankingBlock


class Backbone(Protocol):
    """Turns images into named feature maps, of which it offers `shapes`, earliest first.

    The model's first layer normalises with its `mean` and `std`. One with a number `cameras` above 0 knows the cameras
    from 0 up to it, and training images of others are an error.
    """

    @property
    def shapes(self) -> Mapping[str, MapShape]:
        """Shape of each map for the input size that it was built for."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of pixel values in 0..1, RGB."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of pixel values in 0..1, RGB."""

    def __call__(self, images: Tensor, want: Sequence[str], cameras: Tensor | None = None) -> Mapping[str, Tensor]:
        """(B, 3, H, W) normalised float -> `{name: (B, C, H, W)}` for each name in `want`.

        `cameras`, (B,) int64, are numbered as in training, with `UNKNOWN` among them; images from elsewhere have none.
        """

    def tail(self, after: str) -> nn.Module:
        """Return a copy of the stages that follow map `after`; the backbone keeps its own.

        An aggregator holds its copies in a module `tails`, by which optimizers know them for parts of the backbone.
        """


class BackboneConfig(Protocol):
    """Options of a backbone. One called `weights` says what to start from; it must take "none"."""

    def build(self, height: int, width: int) -> Backbone:
        """Build it for images of `height` by `width` pixels."""


class Aggregator(Protocol):
    """Turns maps into vectors, one a view, and extras."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the maps that it reads."""

    @property
    def views(self) -> Mapping[str, int]:
        """Dimension of each view."""

    @property
    def embed(self) -> tuple[str, ...]:
        """The views whose head outputs, joined, are the embedding."""

    @property
    def extras(self) -> Mapping[str, Extra]:
        """Shape of each extra; in training they may be left out."""

    def __call__(self, maps: Mapping[str, Tensor]) -> Views:
        """`{map: (B, C, H, W)}` -> views of (B, D)."""


class AggregatorConfig(Protocol):
    """Options of an aggregator."""

    def build(self, backbone: Backbone) -> Aggregator:
        """Build it for the maps that `backbone.shapes` offers."""


class Head(Protocol):
    """Turns one view's vector into an embedding and class scores; one is built a view."""

    @property
    def dim(self) -> int:
        """Dimension of what it puts out, D."""

    @property
    def logits(self) -> Literal["linear", "cosine"]:
        """What its logits are: products with rows, or cosines."""

    def __call__(self, x: Tensor) -> HeadOut:
        """(B, D) -> before the norm, after it, margin-free logits."""

    def resize(self, classes: int, rows: Tensor | None = None) -> None:
        """Replace the classifier by one of `classes` rows, (K, D) `rows` if given, else fresh ones."""


class HeadConfig(Protocol):
    """Options of a head."""

    def build(self, dim: int, classes: int) -> Head:
        """Build it for vectors of `dim` numbers; 0 classes makes a head without a classifier."""


class Loss(Protocol):
    """One term of the objective. It may own parameters, which are trained with the model's.

    With several processes each has one, of its own part of the batch. A memory of batches, such as centres, is the same
    in all if the loss gathers (`Needs.gather`).
    """

    @property
    def needs(self) -> Needs:
        """What it reads of the model's output."""

    def __call__(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return named scalar terms; the recipe's `weight` is applied afterwards."""


class LossConfig(Protocol):
    """Options of a loss."""

    def build(self, parts: Parts) -> Loss:
        """Build it for the model in `parts`."""


class Sampler(Protocol):
    """Chooses the images of every batch: a pure function of the epoch."""

    def __len__(self) -> int:
        """Return the number of batches an epoch, the same in each."""

    def batches(self, epoch: int) -> Iterator[Sequence[int]]:
        """Yield the epoch's global batches as positions; images of one class stand together."""


class SamplerConfig(Protocol):
    """Options of a sampler.

    A config whose `build` has a fourth parameter `sources` is also given, by name, the [[train]] table that each image
    came from: (N,) int, counted from 0.
    """

    def build(self, labels: NDArray[Any], cameras: NDArray[Any], seed: int) -> Sampler:
        """Build it for images with classes `labels` (`UNKNOWN` where unlabelled) and `cameras`, both (N,) int."""


class MetricState(Protocol):
    """A metric's running tally over blocks of queries.

    It may offer `curves`, `{name: {name: array}}` to be kept for plots; and `sums`, if the metric has `figures`.
    """

    @property
    def per_query(self) -> Mapping[str, NDArray[Any]]:
        """`{name: (Q,)}`, what the figures are made of, NaN for a query that does not count; may be empty."""

    def update(self, block: RankingBlock) -> None:
        """Take in one block of ranked queries."""

    def merge(self, other: Any) -> None:
        """Take in the tally that another process made of other queries."""

    def result(self) -> Mapping[str, float]:
        """Return the named figures, fractions of 1."""


class Metric(Protocol):
    """Judges rankings, a block of queries at a time.

    Its figures have intervals, and are compared between runs, if they can be computed from sums over queries: then it
    has a method `figures((R, S) sums) -> {name: (R,)}`, and its state a property `sums`, the `retrieval.bootstrap.Sums`
    of each query identity.
    """

    def start(self, problem: Problem) -> MetricState:
        """Begin a tally for `problem`."""


class MetricConfig(Protocol):
    """Options of a metric."""

    def build(self) -> Metric:
        """Build it."""


class Prepared(Protocol):
    """A post-processor that has seen the whole problem."""

    @property
    def problem(self) -> Problem:
        """The problem with the features that replace the old ones; as it was when they stay."""

    def rows(self, rows: slice, distances: Tensor) -> Tensor:
        """(q, G) distances of the queries in `rows` -> (q, G) distances that replace them."""


class Postprocessor(Protocol):
    """Improves features or distances after extraction.

    Stage `features` changes the features, `graph` looks at all neighbours (one at most), `rows` re-scores a block
    of distances; they run in that order.

    One with something left to choose, a threshold or a weight, has a method `choose(problem, blocks) -> {name: value}`.
    Before it prepares a test it is given the problem of training identities that were held out (`evaluation.holdout`)
    and, in blocks of rows, `(slice, (q, G) float32 array)`, the distances there, both as the parts before it leave
    them. What it returns is told to the user. Options are never chosen on a test.
    """

    @property
    def stage(self) -> Literal["features", "graph", "rows"]:
        """When it runs."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the extras that it reads."""

    def prepare(self, problem: Problem) -> Prepared:
        """Look at the whole problem once."""


class PostprocessorConfig(Protocol):
    """Options of a post-processor."""

    def build(self) -> Postprocessor:
        """Build it."""


class Artifact(Protocol):
    """An exported model that can be run."""

    @property
    def files(self) -> Sequence[Path]:
        """What was written."""

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> `{"embedding": (B, D) float32, ...}`."""


class Exporter(Protocol):
    """Writes a model as a file for another engine."""

    @property
    def tolerance(self) -> float:
        """Largest accepted 1 - cosine between the artifact's embeddings and the model's."""

    def export(self, model: Any, images: NDArray[Any], folder: Path) -> Artifact:
        """Write `model` into `folder`; `images` (B, H, W, 3) uint8 are real examples, up to 256 of them.

        With a fourth parameter `about` it is also given what the file should say of itself, a `reidcore.export.About`.
        """


class ExporterConfig(Protocol):
    """Options of an exporter.

    One whose files can be run without the model has their ends in `suffixes`, (".onnx",), and a static method
    `open(file, device) -> Artifact`. Such an artifact has a property `about`, the `reidcore.export.About` that its file
    holds or None. It may have a method `run_tensors`, which is `run` from and to tensors on its device.
    """

    def build(self) -> Exporter:
        """Build it."""


class DatasetConfig(Protocol):
    """Options of a data set; the built part is its lists of samples.

    One that is published with a protocol of its own has its name in `protocol`, which no option can be called.
    """

    def build(self) -> Splits:
        """Read the lists (not the images)."""


class Transform(Protocol):
    """Changes one training image. Randomness comes from torch's global generator, which the loader seeds.

    A transform with the attribute `mixes = True` sees other images too: it is a `MixingTransform`. One with
    `random = False` makes the same of the same image at all times; first in a recipe, it is called once an image if
    there is memory to keep what it makes.
    """

    @property
    def resizes(self) -> bool:
        """Whether the result has the input size whatever came in."""

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 RGB -> (3, H', W') uint8 RGB."""


class MixingTransform(Protocol):
    """Changes one training image by the others of its batch: those that this process has of it.

    All images of the batch come to it before it is called for the first one, so it sees the others as they were
    before it, whatever it makes of them. Its randomness is seeded as a `Transform`'s.
    """

    mixes: Literal[True]

    @property
    def resizes(self) -> bool:
        """Whether the result has the input size whatever came in."""

    def __call__(self, image: Tensor, others: Sequence[Tensor]) -> Tensor:
        """(3, H, W) uint8 RGB and the others, which may differ in size and be none -> (3, H', W') uint8 RGB.

        None of them may be changed in place.
        """


class TransformConfig(Protocol):
    """Options of a transform."""

    def build(self, height: int, width: int) -> Transform | MixingTransform:
        """Build it for an input size of `height` by `width` pixels."""


class OptimizerConfig(Protocol):
    """Options of an optimizer."""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> Optimizer:
        """Build it for named parameters."""


class Schedule(Protocol):
    """The learning rate's course: a pure function of the step."""

    def __call__(self, step: int) -> float:
        """Return the factor on the optimizer's learning rate at `step`, counted from 0."""


class SchedulerConfig(Protocol):
    """Options of a schedule."""

    def build(self, steps_per_epoch: int, epochs: int) -> Schedule:
        """Build it for the length of the training."""


class Task(Protocol):
    """What is learned, while the loop says when."""

    def prepare(self, run: Any) -> None:
        """Look at the run before its optimizer is made; may wrap the model or add parameters."""

    def round(self, epoch: int, run: Any) -> Mapping[str, Stream] | None:
        """Return what to train on from this epoch on, or None: as before.

        It is called once before each epoch, and again where a run is resumed, before anything else of that process:
        the first call, whose epoch may be any, must return streams. An epoch goes through the first of them once;
        another begins again where it ends. A task with parameters of its own is a module, and may replace them here;
        `run.resize` gives the model other classes. Each of several processes calls it, and all must come to the same
        labels: what is drawn is drawn by `run.seed` and the epoch. What is worth a line it logs:
        `run.log(kind="round", text=...)`.
        """

    def losses(self, batches: Mapping[str, Batch], step: Step) -> Mapping[str, Tensor]:
        """Return the weighted terms of the objective for one batch of each stream."""

    def deploy(self) -> Any:
        """Return the plain model that is evaluated, saved and exported."""


class TaskConfig(Protocol):
    """Options of a task."""

    def build(self) -> Task:
        """Build it."""


class Logger(Protocol):
    """Receives what a run reports."""

    def log(self, event: Mapping[str, Any]) -> None:
        """Take one event: a flat mapping with a "kind", such as "step", "epoch" or "evaluation", and perhaps a "step".

        `reidcore.events` lists the kinds and what is in them, and has `numbers(event)`, the figures by name. A "text"
        is for people. The last event is the "end", whose "status" is "finished", "interrupted" or "failed".
        """

    def close(self) -> None:
        """Flush and release; called once."""


class LoggerConfig(Protocol):
    """Options of a logger."""

    def build(self, folder: Path) -> Logger:
        """Build it for the run folder."""


@frozen
class Kind:
    """One kind of part: its name in messages, its hook, and the protocol of its configs.

    `reserved` are the keys that the core reads in the same table of a recipe, which no option can be called.
    """

    name: str
    plural: str
    protocol: type
    reserved: tuple[str, ...] = ()

    @property
    def hook(self) -> str:
        """The name of the hook that offers components of this kind."""
        return f"reidcore_{self.plural}"

    @property
    def one(self) -> str:
        """The name with its article: "an aggregator"."""
        return f"{'an' if self.name[0] in 'aeo' else 'a'} {self.name}"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("backbone", "backbones", BackboneConfig),
        Kind("aggregator", "aggregators", AggregatorConfig),
        Kind("head", "heads", HeadConfig),
        Kind("loss", "losses", LossConfig, ("weight",)),
        Kind("sampler", "samplers", SamplerConfig),
        Kind("metric", "metrics", MetricConfig),
        Kind("postprocessor", "postprocessors", PostprocessorConfig),
        Kind("exporter", "exporters", ExporterConfig),
        Kind(
            "dataset",
            "datasets",
            DatasetConfig,
            ("role", "label", "protocol", "cameras", "query_transform", "postprocess"),
        ),
        Kind("transform", "transforms", TransformConfig),
        Kind("optimizer", "optimizers", OptimizerConfig),
        Kind("scheduler", "schedulers", SchedulerConfig),
        Kind("task", "tasks", TaskConfig),
        Kind("logger", "loggers", LoggerConfig),
    )
}

__all__ = ["KINDS", "Kind", "Features", *(kind.protocol.__name__ for kind in KINDS.values())]
