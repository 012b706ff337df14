"""The model: normalisation, backbone, aggregator and one head a view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from reidcore.errors import ContractError, offer
from reidcore.kinds import Aggregator, Backbone, Head
from reidcore.types import Batch, Output, Step


class Normalize(nn.Module):
    """(B, 3, H, W) pixel values in 0..255 -> float32, less the mean and over the standard deviation; never in place."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(shape) * 255), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images of the same shape."""
        return (images.float() - self.mean) * self.scale


class Model(nn.Module):
    """Images in, `Output` out (paper, Figure 1). Shapes: B batch, D embedding.

    The embedding joins the heads' embeddings of the views that the aggregator names in `embed`.
    """

    def __init__(self, backbone: Backbone, aggregator: Aggregator, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.normalize = Normalize(backbone.mean, backbone.std)
        self.backbone: Any = backbone
        self.aggregator: Any = aggregator
        self.heads = nn.ModuleDict(heads)  # type: ignore[arg-type]
        self.narrow = any(shape.width == 1 < shape.height for shape in backbone.shapes.values())
        missing = [name for name in aggregator.needs if name not in backbone.shapes]
        if missing:
            raise ContractError(
                f"aggregator: it needs map '{missing[0]}'; the backbone offers {', '.join(backbone.shapes)}"
            )

    @property
    def dim(self) -> int:
        """The embedding's dimension, D."""
        return sum(self.heads[view].dim for view in self.aggregator.embed)  # type: ignore[misc]

    def forward(self, images: Tensor, want: Sequence[str] = (), cameras: Tensor | None = None) -> Output:
        """(B, 3, H, W) pixel values in 0..255 -> Output with the maps named in `want`.

        A CPU computes maps that are one pixel wide in float32: oneDNN's bfloat16 convolutions of stride 2 with AMX
        (3.12, of torch 2.14) read memory that nobody wrote where their result is that narrow.
        """
        exact = self.narrow and images.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if exact else nullcontext():
            return self._forward(images, want, cameras)

    def _forward(self, images: Tensor, want: Sequence[str], cameras: Tensor | None) -> Output:
        names = tuple(dict.fromkeys((*self.aggregator.needs, *want)))
        maps = self.backbone(self.normalize(images), names, cameras)
        views = self.aggregator(maps)
        outs = {view: self.heads[view](vector) for view, vector in views.vectors.items()}
        return Output(
            embedding=torch.cat([outs[view].embedding for view in self.aggregator.embed], 1),
            before={view: out.before for view, out in outs.items()},
            after={view: out.after for view, out in outs.items()},
            logits={view: out.logits for view, out in outs.items() if out.logits is not None},
            maps={name: maps[name] for name in want},
            extras=views.extras,
        )


class FrozenModel:
    """A trained model that is only looked at, see `reidcore.types.Frozen`. It is no module, so that nobody trains or
    saves it.

    resize: makes (B, 3, H, W) uint8 images as large as it takes them; precision: what it computes in; cameras: whether
    it is told those of the images, which it has to know by the same numbers.
    """

    def __init__(
        self,
        model: Model,
        identities: Sequence[int] | None,
        resize: Callable[[Tensor], Tensor],
        precision: torch.dtype,
        cameras: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.identities, self.resize, self.precision, self.cameras = identities, resize, precision, cameras
        self._maps: dict[str, None] = {}

    def want(self, maps: Sequence[str]) -> None:
        """Ask for maps in the outputs. Raises ContractError for a name that the backbone does not have."""
        offered = list(self.model.backbone.shapes)
        for name in maps:
            if name not in offered:
                raise ContractError(f"the trained model has no map '{name}'; {offer(name, offered)}")
        self._maps |= dict.fromkeys(maps)

    def output(self, batch: Batch, step: Step) -> Output:
        """Return what the model makes of a batch's images, computed once a step and images."""
        return step.once(f"frozen {id(self)} {id(batch.images)}", lambda: self._run(batch))

    @torch.no_grad()
    def _run(self, batch: Batch) -> Output:
        images, cameras = self.resize(batch.images), batch.cameras if self.cameras else None
        with torch.autocast(images.device.type, self.precision, enabled=self.precision != torch.float32):
            output: Output = self.model(images, tuple(self._maps), cameras)
        return output
