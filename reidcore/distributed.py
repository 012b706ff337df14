"""What the processes of a run tell each other. B this process's batch, N the batches of all processes.

Small numbers and objects go through main memory (gloo), tensors of the training through their device (NCCL). Every
function here is to be called by all processes, in the same order; a single process gets back what it gave.

What a process adds up is its share of the whole: losses are weighted by the share of the images, gradients are summed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from attrs import evolve
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from reidcore.errors import RunError
from reidcore.types import ALONE, Batch, Mixture, Output, World

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a process waits for another: one may rank millions of images meanwhile. One that dies is noticed at once."""
BUCKET = 2**23
"""Numbers that are sent together."""


class Elsewhere(RunError):
    """Another process had an error, which all know of, and says it."""


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that the environment tells of, by `RANK` and `WORLD_SIZE` as torchrun sets them, and part.

    Of an error only the first process that has it passes it on; the others raise SystemExit. Raises RunError where
    another process ended without a word.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), local)
        return
    try:
        store, rank, size = next(rendezvous("env://"))
    except (ValueError, dist.DistError) as error:
        raise RunError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but there are no others to be found: {error}"
        ) from None
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # torchrun's store outlives those who were ended, whose addresses are in it; machines count restarts differently
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    world = World(rank, size, local)
    try:
        with warnings.catch_warnings():
            if not world.main:
                warnings.simplefilter("ignore")
            yield world
    except (Exception, KeyboardInterrupt) as error:
        # A process that ends has the others ended by their launcher. So the one that has something to say ends first;
        # of an error that all have it is the main one, which has loggers to close.
        if not world.main:
            time.sleep(1)
        if isinstance(error, Elsewhere) or not _first(store):
            time.sleep(3 if isinstance(error, Elsewhere) else 1)
            raise SystemExit(2) from None
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            time.sleep(3)  # a launcher that sees processes end says more, and ends this one
            raise RunError(
                "another process of the run ended without a word; it was killed, or there was no memory left. Go on "
                "with --resume"
            ) from error
        raise
    wait(world)
    dist.destroy_process_group()


def _first(store: Any) -> bool:
    """Return whether no process has had an error before."""
    try:
        return bool(store.add("errors", 1) == 1)
    except RuntimeError:  # who keeps the store is gone, and has said why
        return False


def restarted() -> bool:
    """Return whether torchrun started this process anew, after one had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def add(values: Sequence[float], world: World) -> list[float]:
    """Return the sums over processes."""
    if world.size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()  # type: ignore[no-any-return]


def wait(world: World) -> None:
    """Return when all processes are here."""
    add([0.0], world)


def of_main(value: T, world: World) -> T:
    """Return the main process's value, any object."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def of_all(value: T, world: World) -> list[T]:
    """Return the values of all processes, any objects, in the order of their ranks."""
    values: list[Any] = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)
    return values


def _together(tensors: Iterable[Tensor], send: Callable[[Tensor], object]) -> None:
    """Apply what works in place to tensors, many at a time."""
    bucket: list[Tensor] = []

    def empty() -> None:
        if bucket:
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            send(flat)
            for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))
            bucket.clear()

    for tensor in tensors:
        if bucket and (
            (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
            or sum(other.numel() for other in bucket) > BUCKET
        ):
            empty()
        bucket.append(tensor)
    empty()


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Sum gradients over processes; one that only some have is 0 in the others, one that none has stays None.

    Which parameters learn may change from step to step.
    """
    if world.size == 1:
        return
    counts = add([parameter.grad is not None for parameter in parameters], world)
    learning = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _together([parameter.grad for parameter in learning if parameter.grad is not None], dist.all_reduce)


@torch.no_grad()
def average_norms(modules: Iterable[nn.Module], world: World) -> None:
    """Give batch norms the mean over processes of the statistics that each keeps of its own batches."""
    if world.size == 1:
        return
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [x for norm in norms for x in (norm.running_mean, norm.running_var) if x is not None]

    def mean(flat: Tensor) -> None:
        main = flat.clone()
        dist.broadcast(main, src=0)
        dist.all_reduce(flat.sub_(main))
        flat.div_(world.size).add_(main)  # what is equal stays as it is, to the last digit

    _together(kept, mean)


@torch.no_grad()
def spread(modules: Iterable[nn.Module], world: World) -> None:
    """Give the parameters and buffers of all processes the values of the main one's."""
    if world.size > 1:
        tensors = (x for module in modules for x in (*module.parameters(), *module.buffers()))
        _together(tensors, lambda flat: dist.broadcast(flat, src=0))


def synchronise_norms(module: nn.Module, world: World, device: torch.device) -> None:
    """Replace a module's batch norms by those whose statistics in training are of the batch of all processes."""
    if world.size > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    elif world.size > 1:
        for parent in list(module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, _BatchNorm):
                    norm = SyncBatchNorm.__new__(SyncBatchNorm)
                    norm.__dict__.update(child.__dict__, world=world)
                    setattr(parent, name, norm)


class SyncBatchNorm(_BatchNorm):
    """What torch's class of this name, which is for GPUs only, does on a CPU. Shapes are (N, C) or (N, C, ...)."""

    world: World

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, C, ...) values, normalised by the mean and variance of each channel."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, over, correction=0)
        own = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        means, variances, counts = torch.split(gather_rows(own[None], self.world), [len(mean), len(mean), 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = (0 if self.bias is None else self.bias) - mean * scale
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def gather_rows(x: Tensor, world: World) -> Tensor:
    """(B, ...) -> (N, ...): the rows of all processes in the order of their ranks; B may differ between them.

    The gradient of a row is the sum of what all processes have for it. So where every process computes its share of a
    loss of all rows, and gradients of parameters are summed over processes, the result is the whole batch's gradient.
    """
    if world.size == 1:
        return x
    rows: Tensor = _GatherRows.apply(x, world)
    return rows


def gather_batch(output: Output, batch: Batch, world: World) -> tuple[Output, Batch]:
    """Return output and batch with the vectors and labels of all processes; images, maps, extras stay its own."""
    whole = evolve(
        output,
        embedding=gather_rows(output.embedding, world),
        before=_Gathered(output.before, world),
        after=_Gathered(output.after, world),
        logits=_Gathered(output.logits, world),
    )
    rows = {name: getattr(batch, name) for name in ("labels", "cameras", "indices", "groupings")}
    gathered: dict[str, Any] = {name: gather_rows(x, world) for name, x in rows.items() if x is not None}
    if (mixture := batch.mixture) is not None:
        gathered["mixture"] = Mixture(gather_rows(mixture.classes, world), gather_rows(mixture.shares, world))
    return whole, evolve(batch, share=1.0, **gathered)


class _Gathered(Mapping[str, Tensor]):
    """Tensors whose rows are gathered when they are asked for: class scores are many, and few losses read them."""

    def __init__(self, tensors: Mapping[str, Tensor], world: World) -> None:
        self.tensors, self.world = tensors, world
        self.found: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.found:
            self.found[name] = gather_rows(self.tensors[name], self.world)
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world.size)]
        dist.all_gather(sizes, torch.tensor([len(x)]))
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
