"""What travels between parts.

Legend of shapes: B batch, D embedding, C channels, H W height and width, N images, Q G queries and gallery,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from attrs import Factory, field, frozen

from reidcore.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

T = TypeVar("T")

UNKNOWN = -1
"""The identity of an unlabelled image, and the camera of an image whose camera is not known."""


class Picture(Protocol):
    """An image that is not a file: a drawing, a record of an archive."""

    @property
    def name(self) -> str:
        """What messages and reports call it."""

    def open(self) -> Image:
        """Return the image; called in loader processes, so it must pickle."""


@frozen
class Sample:
    """One labelled image: a file or a `Picture`, who is on it, and which camera took it.

    source: position of the [[train]] table that it came from, which the core fills in.
    """

    image: Path | Picture
    identity: int = UNKNOWN
    camera: int = UNKNOWN
    source: int = 0

    @property
    def name(self) -> str:
        """The path or the picture's name."""
        return str(self.image) if isinstance(self.image, Path) else self.image.name


@frozen
class Splits:
    """A data set: training images, and queries to be found in a gallery. `notes` are told to the user."""

    train: Sequence[Sample] = ()
    query: Sequence[Sample] = ()
    gallery: Sequence[Sample] = ()
    notes: Sequence[str] = ()


@frozen
class Stream:
    """Images to train on in one round, with the class of each.

    labels: (N,) integers in 0..K-1, or `UNKNOWN`.
    """

    samples: Sequence[Sample]
    labels: NDArray[Any]


@frozen(eq=False)
class Mixture:
    """Labels that are several classes at once: (B, S) int64 classes and their (B, S) shares, whose sum is 1.

    A loss over class scores is the mean over the classes, by their shares, of what it is for each.
    """

    classes: Tensor
    shares: Tensor


@frozen(eq=False)
class Batch:
    """A training batch on the device.

    images: (B, 3, H, W) uint8 RGB; labels: (B,) int64 classes; cameras: (B,) int64;
    indices: (B,) int64 positions in the stream's samples.

    Labels that are guesses may say more, which losses over class scores and over pairs heed. mixture: what is used in
    the place of labels, but for images whose label is `UNKNOWN`; groupings: (B, G) int64 classes by G guesses,
    `UNKNOWN` where there is none. Images are a positive pair if all guesses say so, a negative one if none does, and
    neither else; only guesses that know both count.

    share: of the images of all processes' batch, how many are in this one's.
    """

    images: Tensor
    labels: Tensor
    cameras: Tensor
    indices: Tensor
    mixture: Mixture | None = None
    groupings: Tensor | None = None
    share: float = 1.0


@frozen
class World:
    """The processes that share the work: this one is `rank` of `size`, and number `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0


ALONE = World()


@frozen
class MapShape:
    """Shape of one image's feature map; `signed` maps may hold negative values."""

    channels: int
    height: int
    width: int
    signed: bool = False


@frozen
class Extra:
    """Shape of one image's extra output, without the batch.

    It is kept in the type that it comes in, float32 or float16.
    """

    shape: tuple[int, ...]


@frozen(eq=False)
class Views:
    """What an aggregator makes of the maps: `{view: (B, D)}` and `{extra: (B, ...)}`."""

    vectors: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(factory=dict)


@frozen(eq=False)
class HeadOut:
    """A head's result: (B, D) before its norm, (B, D) after it, and margin-free (B, K) logits or None.

    embedding: (B, D), the one that retrieval compares; what is after the norm unless the head says otherwise.
    """

    before: Tensor
    after: Tensor
    logits: Tensor | None = None
    embedding: Tensor = field(default=Factory(lambda self: self.after, takes_self=True))


@frozen(eq=False)
class Output:
    """A model's result, the same in training and in evaluation.

    embedding: (B, D), what retrieval compares; before, after: (B, D) a view; logits: (B, K) a view whose head
    has a classifier; maps: (B, C, H, W), those that were asked for; extras: (B, ...).
    """

    embedding: Tensor
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]
    maps: Mapping[str, Tensor] = field(factory=dict)
    extras: Mapping[str, Tensor] = field(factory=dict)


@frozen
class Needs:
    """What a loss wants of the model: views, maps, a kind of logits.

    With `gather` it is given the vectors, logits and labels of all processes, in every one of them; maps, extras and
    images stay those of its own. Without it what it returns is taken for a mean over the images of its own process, and
    weighted by their share. `classes` says that it depends on what each class is, so that these must stay.
    """

    views: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    logits: Literal["linear", "cosine"] | None = None
    gather: bool = False
    classes: bool = False


@frozen(eq=False)
class Step:
    """The optimisation step in progress: its number from the start of training, and its epoch.

    average: the model of averaged weights (`training.ema`), None where they are not averaged; its outputs have the maps
    that losses need of the model.
    """

    number: int
    epoch: int
    average: Frozen | None = None
    _cache: dict[str, object] = field(factory=dict, alias="cache")

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return `make()`, called once a step however many parts ask for `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return cast(T, self._cache[key])


class Frozen(Protocol):
    """A trained model that is only looked at: in evaluation mode, without gradients, and no part of who holds it.

    model: the network, a `reidcore.model.Model`; identities: those of its classes in order, None where they are not
    known.
    """

    model: Any
    identities: Sequence[int] | None

    def want(self, maps: Sequence[str]) -> None:
        """Ask for maps in the outputs, beside those that others have asked for. Raises ContractError for a name that
        the backbone does not have."""

    def output(self, batch: Batch, step: Step) -> Output:
        """Return what the model makes of a batch's images, which are resized to its input size; computed once a step
        however many losses ask."""


def no_frozen(run: Path, weights: Path | None) -> Frozen:
    """Stand for what loads trained models, where there is nothing that does."""
    raise RunError(f"there is nothing here to load {run} with")


@frozen(eq=False)
class Parts:
    """What a loss may look at when it is built: the model it will train, and its classes.

    identities: those of the classes in order, None where they are not known yet; averaged: whether steps have an
    `average`; frozen: returns the trained model of a run folder, or of a recipe and a file of weights, on the device of
    the run and in its precision, the same one each time. It raises RunError when there is none.
    """

    model: Any
    classes: int
    identities: Sequence[int] | None = None
    averaged: bool = False
    frozen: Callable[[Path, Path | None], Frozen] = field(default=no_frozen)


@frozen(eq=False)
class Features:
    """Embeddings with their labels: what retrieval works on.

    embeddings: (N, D) float32; identities, cameras: (N,) int; paths: N names or None;
    groups: (N,) int or None (a sequence, a shot); extras: `{name: (N, ...)}`.
    """

    embeddings: Any
    identities: Any
    cameras: Any
    paths: Sequence[str] | None = None
    groups: Any = None
    extras: Mapping[str, Any] = field(factory=dict)

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: Any) -> Features:
        """Return the features of the images with these numbers, (n,); all but the paths must be arrays."""
        return Features(
            self.embeddings[rows],
            self.identities[rows],
            self.cameras[rows],
            None if self.paths is None else [self.paths[row] for row in rows],
            None if self.groups is None else self.groups[rows],
            {name: values[rows] for name, values in self.extras.items()},
        )
