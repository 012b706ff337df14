"""Losses of the core (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl
from reidcore.types import Parts

if TYPE_CHECKING:
    from reidcore.builtin.modules import classification, pairs

_SMOOTHING = "probability moved from the true class to the others"
_MARGIN = 0.3


@frozen(kw_only=True)
class _OnLogits:
    on: tuple[str, ...] = option((), help="views it is averaged over, all when empty")

    def views(self, parts: Parts) -> tuple[str, ...]:
        return self.on or tuple(parts.model.heads)


@frozen(kw_only=True)
class _Margin(_OnLogits):
    scale: float = option(64.0, help="factor on the cosines", above=0)
    smoothing: float = option(0.0, help=_SMOOTHING, at_least=0, below=1)


@frozen(kw_only=True)
class _OnFeatures:
    feature: Literal["before", "after"] = option("before", help="before or after the head's norm")
    gather: bool = option(True, help="compare with the images of all processes, not with those of its own only")
    on: tuple[str | tuple[str, ...], ...] = option(
        (), help="views it is averaged over, all when empty; an inner array is a concatenation: ['b1', ['b21', 'b22']]"
    )

    def __attrs_post_init__(self) -> None:
        if () in self.on:
            raise ValueError("found an empty array in 'on'; expected names of views to join")

    def common(self, parts: Parts) -> dict[str, Any]:
        return {"feature": self.feature, "gather": self.gather, "on": self.on or tuple(parts.model.heads)}


@frozen(kw_only=True)
class CrossEntropy(_OnLogits):
    """Cross-entropy over the training identities, with label smoothing (equation 6)."""

    smoothing: float = option(0.1, help=_SMOOTHING, at_least=0, below=1)
    spread: Literal["others", "all"] = option(
        "others", help="'others': each other class gets smoothing / (K - 1); 'all': every class gets smoothing / K"
    )
    form: Literal["softmax", "binary", "adaptive"] = option(
        "softmax",
        help="'binary': equation 6 as a sum over classes; 'adaptive': smoothing (0.2 in the reference) times the true "
        "class's probability",
    )

    def build(self, parts: Parts) -> classification.CrossEntropy:
        from reidcore.builtin.modules.classification import AdaptiveCrossEntropy, BinaryCrossEntropy, CrossEntropy

        forms = {"softmax": CrossEntropy, "binary": BinaryCrossEntropy, "adaptive": AdaptiveCrossEntropy}
        return forms[self.form](self.smoothing, self.views(parts), self.spread)


@frozen(kw_only=True)
class Focal(_OnLogits):
    """Focal loss: images that are classified well count less (Lin et al. 2017)."""

    alpha: float = option(0.25, help="factor", above=0)
    gamma: float = option(2.0, help="exponent of 1 - p", at_least=0)

    def build(self, parts: Parts) -> classification.Focal:
        from reidcore.builtin.modules.classification import Focal

        return Focal(self.alpha, self.gamma, self.views(parts))


@frozen(kw_only=True)
class CosFace(_Margin):
    """Softmax over scaled cosines, a margin off the true one (Wang et al. 2018); margin 0 is the cosine softmax."""

    margin: float = option(0.35, help="off the true class's cosine", at_least=0)

    def build(self, parts: Parts) -> classification.CosFace:
        from reidcore.builtin.modules.classification import CosFace

        return CosFace(self.scale, self.margin, self.smoothing, self.views(parts))


@frozen(kw_only=True)
class ArcFace(_Margin):
    """Softmax over scaled cosines, a margin on the true class's angle (Deng et al. 2019)."""

    margin: float = option(0.5, help="on the true class's angle, radians", at_least=0, below=1.5708)

    def build(self, parts: Parts) -> classification.ArcFace:
        from reidcore.builtin.modules.classification import ArcFace

        return ArcFace(self.scale, self.margin, self.smoothing, self.views(parts))


@frozen(kw_only=True)
class Circle(_Margin):
    """Circle loss with class labels (Sun et al. 2020)."""

    margin: float = option(0.35, help="relaxation of both optima", at_least=0, at_most=1)

    def build(self, parts: Parts) -> classification.CircleSoftmax:
        from reidcore.builtin.modules.classification import CircleSoftmax

        return CircleSoftmax(self.scale, self.margin, self.smoothing, self.views(parts))


@frozen(kw_only=True)
class Triplet(_OnFeatures):
    """Triplet loss: positives nearer than negatives (Hermans et al. 2017)."""

    margin: float | None = option(None, help="margin between the distances; 0.3 when absent", at_least=0)
    soft: bool = option(False, help="soft margin log(1 + exp(d_p - d_n)) instead of a margin")
    mining: Literal["hard", "weighted", "all"] = option(
        "hard", help="the hardest pairs of each anchor, means weighted towards them, or every triplet"
    )
    distance: Literal["euclidean", "cosine"] = option("euclidean", help="between embeddings")
    normalize: bool = option(False, help="compare directions only, with the euclidean distance")
    reduction: Literal["mean", "sum"] = option("mean", help="over anchors, or triplets with mining = 'all'")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.soft and self.margin is not None:
            raise ValueError(f"found soft = true and margin = {self.margin}; expected one of them")
        if self.normalize and self.distance == "cosine":
            raise ValueError("found normalize = true; the cosine distance compares directions only already")

    def build(self, parts: Parts) -> pairs.Triplet:
        from reidcore.builtin.modules.pairs import Triplet

        return Triplet(
            None if self.soft else _MARGIN if self.margin is None else self.margin,
            normalize=self.normalize,
            mining=self.mining,
            distance=self.distance,
            reduction=self.reduction,
            **self.common(parts),
        )


@frozen(kw_only=True)
class PairCircle(_OnFeatures):
    """Circle loss over pairs of the batch (Sun et al. 2020)."""

    margin: float = option(0.25, help="relaxation of both optima", at_least=0, at_most=1)
    scale: float = option(128.0, help="factor on the weighted cosines", above=0)

    def build(self, parts: Parts) -> pairs.PairCircle:
        from reidcore.builtin.modules.pairs import PairCircle

        return PairCircle(self.margin, self.scale, **self.common(parts))


@frozen(kw_only=True)
class PairCosFace(_OnFeatures):
    """CosFace over pairs of the batch: every positive's cosine a margin above every negative's."""

    margin: float = option(0.25, help="between the cosines", at_least=0)
    scale: float = option(128.0, help="factor on the cosines", above=0)

    def build(self, parts: Parts) -> pairs.PairCosFace:
        from reidcore.builtin.modules.pairs import PairCosFace

        return PairCosFace(self.margin, self.scale, **self.common(parts))


@frozen(kw_only=True)
class Center(_OnLogits):
    """Centre loss: each image near the centre of its class (Wen et al. 2016)."""

    rate: float = option(0.5, help="how far the centres follow their images", above=0, at_most=1)
    feature: Literal["before", "after"] = option("before", help="before or after the head's norm")

    def build(self, parts: Parts) -> pairs.Center:
        from reidcore.builtin.modules.pairs import Center

        dims = {view: head.dim for view, head in parts.model.heads.items()}
        return Center(parts.classes, self.views(parts), dims, self.rate, self.feature)


@hookimpl
def reidcore_losses() -> Iterator[Component]:
    """Offer losses over class scores and over pairs of embeddings."""
    yield Component(name="cross-entropy", config=CrossEntropy)
    yield Component(name="focal", config=Focal)
    yield Component(name="cosface", config=CosFace)
    yield Component(name="arcface", config=ArcFace)
    yield Component(name="circle", config=Circle)
    yield Component(name="triplet", config=Triplet)
    yield Component(name="pair-circle", config=PairCircle)
    yield Component(name="pair-cosface", config=PairCosFace)
    yield Component(name="center", config=Center)
