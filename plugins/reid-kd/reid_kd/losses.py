"""The losses as parts of a recipe. B batch, K classes, D embedding, C channels, H W map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_kd import formulas
from reidcore.errors import ContractError
from reidcore.types import Batch, Frozen, Needs, Output, Step


class Distillation(nn.Module):
    """A loss between what the model puts out and what its teacher does for the same images.

    teacher: a trained model, or None for the moving average of the model. It is computed once a step, whichever losses
    ask for it, and is no part of this module: it is not trained, saved or put into training mode.
    """

    def __init__(self, teacher: Frozen | None, needs: Needs) -> None:
        super().__init__()
        self.teacher, self.needs = teacher, needs

    def forward(self, output: Output, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Return `{name: scalar}`."""
        teacher = self.teacher or step.average
        if teacher is None:
            raise ContractError("there is no moving average to learn from; write ema = 0.999 in [training]")
        with torch.autocast(output.embedding.device.type, enabled=False):
            return self.compare(output, teacher.output(batch, step))

    def compare(self, student: Output, teacher: Output) -> Mapping[str, Tensor]:
        """Return `{name: scalar}`."""
        raise NotImplementedError


class Logits(Distillation):
    """Between the logits of views, by one of the `formulas`; names: `{view: the teacher's}`, by default the same."""

    def __init__(
        self,
        teacher: Frozen | None,
        views: Sequence[str],
        names: Mapping[str, str],
        form: str,
        temperature: float,
        scale: float,
    ) -> None:
        super().__init__(teacher, Needs(views=tuple(views), classes=True))
        self.names, self.form, self.temperature, self.scale = dict(names), form, temperature, scale

    def compare(self, student: Output, teacher: Output) -> Mapping[str, Tensor]:
        """Return the mean over views."""
        pairs = [(student.logits[view], teacher.logits[self.names.get(view, view)]) for view in self.needs.views]
        return {"kd-logits": torch.stack([self._one(*pair) for pair in pairs]).mean()}

    def _one(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            found = f"{teacher.shape[1]} classes, and the student {student.shape[1]}"
            raise ContractError(f"kd-logits: the teacher has {found}; both have to be trained on the same identities")
        student, teacher = (_wide(logits) * self.scale for logits in (student, teacher))
        if self.form == "l1":
            return formulas.l1(student, teacher)
        return (formulas.kl if self.form == "kl" else formulas.symmetric)(student, teacher, self.temperature)


class PKT(Distillation):
    """Between the similarities of embeddings; their dimensions may differ."""

    def __init__(self, teacher: Frozen | None) -> None:
        super().__init__(teacher, Needs())

    def compare(self, student: Output, teacher: Output) -> Mapping[str, Tensor]:
        """Return the divergence."""
        return {"kd-pkt": formulas.pkt(_wide(student.embedding), _wide(teacher.embedding))}


class Relational(Distillation):
    """Between the distances and angles of embeddings, each with a factor; their dimensions may differ."""

    def __init__(self, teacher: Frozen | None, distance: float, angle: float) -> None:
        super().__init__(teacher, Needs())
        self.factors = {"kd-distances": distance, "kd-angles": angle}

    def compare(self, student: Output, teacher: Output) -> Mapping[str, Tensor]:
        """Return one term for distances and one for angles, but for a factor of 0."""
        pair = _wide(student.embedding), _wide(teacher.embedding)
        found = {"kd-distances": formulas.distances, "kd-angles": formulas.angles}
        return {name: factor * found[name](*pair) for name, factor in self.factors.items() if factor}


class Overhaul(Distillation):
    """Between maps: the student's through a connector, a 1x1 convolution and a batch norm, which is trained with it.

    channels: the student's and the teacher's of each map. The terms of the maps before the last count half of the next
    one's, and all are divided by 10,000, as in the reference system. A teacher's map of another size is resized.
    """

    def __init__(
        self,
        teacher: Frozen | None,
        maps: Sequence[str],
        teacher_maps: Sequence[str],
        channels: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(teacher, Needs(maps=tuple(maps)))
        self.teacher_maps = tuple(teacher_maps)
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(of_student, of_teacher, 1, bias=False), nn.BatchNorm2d(of_teacher))
            for of_student, of_teacher in channels
        )

    def compare(self, student: Output, teacher: Output) -> Mapping[str, Tensor]:
        """Return the weighted sum over maps."""
        total = torch.zeros((), device=student.embedding.device)
        for name, other, connector in zip(self.needs.maps, self.teacher_maps, self.connectors, strict=True):
            target = _wide(teacher.maps[other])
            if target.shape[2:] != student.maps[name].shape[2:]:
                target = F.interpolate(target, student.maps[name].shape[2:], mode="bilinear")
            total = total / 2 + formulas.margin_relu(connector(_wide(student.maps[name])), target)
        return {"kd-overhaul": total / 10_000}


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
