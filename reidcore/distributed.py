"""What the processes of a run tell each other. B this process's batch, N the batches of all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from attrs import evolve
from torch import Tensor

from reidcore.types import Batch, Mixture, Output, World


def gather_rows(x: Tensor, world: World) -> Tensor:
    """(B, ...) -> (N, ...): the rows of all processes in the order of their ranks; B may differ between them.

    The gradient of a row is the sum of what all processes have for it. So where every process computes the same loss
    of all rows, and gradients of parameters are averaged over processes, the result is the whole batch's gradient.
    """
    if world.size == 1:
        return x
    rows: Tensor = _GatherRows.apply(x, world)
    return rows


def gather_batch(output: Output, batch: Batch, world: World) -> tuple[Output, Batch]:
    """Return output and batch with the vectors and labels of all processes; images, maps, extras stay its own."""

    def every(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: gather_rows(tensor, world) for name, tensor in tensors.items()}

    whole = evolve(
        output,
        embedding=gather_rows(output.embedding, world),
        before=every(output.before),
        after=every(output.after),
        logits=every(output.logits),
    )
    rows = {name: getattr(batch, name) for name in ("labels", "cameras", "indices", "groupings")}
    gathered: dict[str, Any] = {name: gather_rows(x, world) for name, x in rows.items() if x is not None}
    if batch.mixture is not None:
        gathered["mixture"] = Mixture(**every({"classes": batch.mixture.classes, "shares": batch.mixture.shares}))
    return whole, evolve(batch, **gathered)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world.size)]
        dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
        counts = [int(size) for size in sizes]
        ctx.start, ctx.count = sum(counts[: world.rank]), len(x)
        # collectives want equal shapes
        padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(world.size)]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count], None
