"""Knowledge distillation: losses that hold a student to a trained teacher (FastReID, section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore import Component, hookimpl
from reidcore.component import option
from reidcore.errors import ContractError, offer
from reidcore.types import Frozen, Parts

if TYPE_CHECKING:
    from reid_kd import losses

SELF = Path("self")


@frozen(kw_only=True)
class _Taught:
    teacher: Path = option(
        help="the teacher's run folder, or its recipe where 'teacher_weights' are given; 'self' is the moving average "
        "of the model that is trained (training.ema)"
    )
    teacher_weights: Path | None = option(None, help="file of the teacher's weights, a run's model.safetensors")

    def load(self, parts: Parts) -> Frozen | None:
        """Return the teacher, None for the moving average. Raises ContractError when there is no such average."""
        if self.teacher != SELF:
            return parts.frozen(self.teacher, self.teacher_weights)
        if not parts.averaged:
            raise ContractError(
                'teacher = "self" is the moving average of the model; write ema = 0.999 in [training], or name a run'
            )
        return None


@frozen(kw_only=True)
class Logits(_Taught):
    """Holds the logits to the teacher's (equation 8); both have the same classes."""

    form: Literal["l1", "kl", "symmetric"] = option(
        "l1", help="sum of differences over classes; Kullback-Leibler divergence from the teacher; its mean both ways"
    )
    temperature: float = option(
        4.0, help="divides the logits of a divergence: higher ones show smaller classes", above=0
    )
    scale: float = option(1.0, help="factor on the logits: for cosines that of the loss they are trained with", above=0)
    on: tuple[str, ...] = option(
        (), help="views it is averaged over, all when empty; the teacher's are those of the same name, or its only one"
    )

    def build(self, parts: Parts) -> losses.Logits:
        from reid_kd.losses import Logits

        teacher = self.load(parts)
        views = self.on or tuple(parts.model.heads)
        names = {} if teacher is None else _check_logits(views, parts, teacher, self.teacher)
        return Logits(teacher, views, names, self.form, self.temperature, self.scale)


@frozen(kw_only=True)
class PKT(_Taught):
    """Holds the similarities within the batch to the teacher's: probabilistic knowledge transfer (equation 9)."""

    def build(self, parts: Parts) -> losses.PKT:
        from reid_kd.losses import PKT

        return PKT(self.load(parts))


@frozen(kw_only=True)
class Relational(_Taught):
    """Holds distances and angles within the batch to the teacher's (Park et al. 2019)."""

    distance: float = option(1.0, help="factor on the loss of distances", at_least=0)
    angle: float = option(2.0, help="factor on the loss of angles", at_least=0)

    def build(self, parts: Parts) -> losses.Relational:
        from reid_kd.losses import Relational

        return Relational(self.load(parts), self.distance, self.angle)


@frozen(kw_only=True)
class Overhaul(_Taught):
    """Holds maps before their ReLU to the teacher's, through connectors that are learnt (Heo et al. 2019)."""

    maps: tuple[str, ...] = option(
        (), help="the student's maps, from first to last; all '.preact' that both have when empty"
    )
    teacher_maps: tuple[str, ...] = option((), help="the teacher's, one each; those of the same names when empty")

    def build(self, parts: Parts) -> losses.Overhaul:
        from reid_kd.losses import Overhaul

        teacher = self.load(parts)
        student = parts.model.backbone.shapes
        taught = student if teacher is None else teacher.model.backbone.shapes
        maps = self.maps or tuple(name for name in student if name.endswith(".preact") and name in taught)
        if not maps:
            raise ContractError("kd-overhaul: student and teacher have no '.preact' maps in common; name maps")
        names = self.teacher_maps or maps
        if teacher is None and names != maps:
            raise ContractError('kd-overhaul: with teacher = "self" both have the same maps; leave teacher_maps out')
        for key, wanted, offered in (("maps", maps, student), ("teacher_maps", names, taught)):
            for name in wanted:
                if name not in offered:
                    raise ContractError(f"kd-overhaul.{key}: there is no map '{name}'; {offer(name, list(offered))}")
        if teacher is not None:
            teacher.want(names)
        channels = [(student[one].channels, taught[other].channels) for one, other in zip(maps, names, strict=True)]
        return Overhaul(teacher, maps, names, channels)

    def __attrs_post_init__(self) -> None:
        if self.teacher_maps and len(self.teacher_maps) != len(self.maps):
            raise ValueError(
                f"teacher_maps: found {len(self.teacher_maps)} for {len(self.maps)} maps; expected one for each"
            )


def _check_logits(views: tuple[str, ...], parts: Parts, teacher: Frozen, name: Path) -> dict[str, str]:
    """Return the teacher's view for each of the student's. Raises ContractError for logits that cannot be compared."""
    heads = teacher.model.heads
    names = {}
    for view in views:
        if view not in heads and len(heads) > 1:
            raise ContractError(f"kd-logits.on: the teacher {name} has no view '{view}'; {offer(view, list(heads))}")
        names[view] = view if view in heads else next(iter(heads))
        ours, theirs = (str(head.logits) for head in (parts.model.heads[view], heads[names[view]]))
        if ours != theirs:
            raise ContractError(f"kd-logits: the student's logits are {ours}, and those of the teacher {name} {theirs}")
    if parts.identities is not None and teacher.identities is not None:
        _check_classes(list(parts.identities), list(teacher.identities), name)
    return names


def _check_classes(ours: list[int], theirs: list[int], name: Path) -> None:
    if ours == theirs:
        return
    what = f"{len(ours)} identities here and {len(theirs)} there, {len({*ours} & {*theirs})} of them the same"
    if sorted(ours) == sorted(theirs):
        what = "the same in another order"
    raise ContractError(
        f"kd-logits: the classes of the student and of the teacher {name} are {what}. Train both on the same data, "
        "with the same evaluation.holdout and run.seed, or take kd-pkt, which compares images instead of classes"
    )


@hookimpl
def reidcore_losses() -> Iterator[Component]:
    """Offer what a student is held to."""
    yield Component(name="kd-logits", config=Logits)
    yield Component(name="kd-pkt", config=PKT)
    yield Component(name="kd-relational", config=Relational)
    yield Component(name="kd-overhaul", config=Overhaul)
