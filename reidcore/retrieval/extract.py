"""From images to features with a model. N images, B batch, D embedding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from reidcore.types import ALONE, Features, Sample, World


@torch.inference_mode()
def extract_batches(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    size: tuple[int, int],
    batch: int = 64,
    flip: bool = True,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    cameras: bool = False,
    transforms: Sequence[Callable[[Tensor], Tensor]] = (),
    first: int = 0,
) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
    """Yield the (B, D) embeddings and the (B, ...) extras of `samples`, resized to `size` (height, width), in order.

    `flip` averages the embeddings of each image and its mirror image; extras are those of the image. `cameras` tells
    the model each image's camera, which has to have the number that it had in training. `transforms` change the images
    before they are resized, each image by the chance of its place, counted from `first`. What is yielded is float32 in
    main memory, or float16 where the model's extras are.
    The model is put into evaluation mode, and back into the mode that it was in. Raises DataError for a bad image.
    """
    from reidcore.builtin.modules.transforms import Resize
    from reidcore.data import test_batches

    device = torch.device(device)
    training = model.training
    model.eval()
    pipeline: list[Any] = [*transforms, Resize(*size)]
    batches = test_batches(samples, pipeline, size=size, batch=batch, workers=workers, device=device, first=first)
    try:
        for number, images in enumerate(batches):
            told = {}
            if cameras:
                numbers = [sample.camera for sample in samples[number * batch : (number + 1) * batch]]
                told["cameras"] = torch.tensor(numbers, device=device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                output = model(images, **told)
                embedding = output.embedding.float()
                if flip:
                    embedding = (embedding + model(images.flip(3), **told).embedding.float()) / 2
            extras = {
                name: (value if value.dtype == torch.float16 else value.float()).cpu()
                for name, value in output.extras.items()
            }
            yield embedding.cpu(), extras
    finally:
        model.train(training)


PIECE = 2**26
"""Bytes that a process sends another at once."""

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Room = Callable[[Shapes], Mapping[str, NDArray[Any]]]
"""Makes arrays of the shapes and types that are asked for, to be filled."""


def in_memory(shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Return the arrays in main memory."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}


def extract(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    world: World = ALONE,
    done: Callable[[int], None] = lambda count: None,
    extras: Collection[str] | None = None,
    room: Room = in_memory,
    **options: Any,
) -> Features:
    """Return the features of `samples`, in their order; the other options are those of `extract_batches`.

    Of several processes each returns those of its share: `world.size` consecutive parts of `samples`.
    `done` is told how many images were added; `extras` are those to keep, by default all; `room` makes the arrays,
    called "embeddings" and "extra.<name>". Raises DataError for a bad image.
    """
    start, stop = share(len(samples), world)
    samples = samples[start:stop]
    arrays: Mapping[str, NDArray[Any]] = {}
    count = 0
    for embedding, more in extract_batches(model, samples, first=start, **options):
        found = {"embeddings": embedding.numpy()}
        found |= {f"extra.{name}": more[name].numpy() for name in more if extras is None or name in extras}
        if not arrays:
            wide = sorted(found.items(), key=lambda item: -item[1].itemsize)  # so that in a file all are aligned
            arrays = room({name: ((len(samples), *array.shape[1:]), array.dtype) for name, array in wide})
        for name, array in found.items():
            arrays[name][count : count + len(array)] = array
        count += len(embedding)
        done(len(embedding))
    return as_features(samples, arrays or {"embeddings": np.zeros((0, 0), np.float32)})


def share(count: int, world: World) -> tuple[int, int]:
    """Return which of `count` images are this process's, from the first to one past the last.

    The main process has one at least, if there are any.
    """
    start, stop = (-(-count * rank // world.size) for rank in (world.rank, world.rank + 1))
    return start, stop


def extract_whole(
    model: nn.Module, samples: Sequence[Sample], *, world: World = ALONE, room: Room = in_memory, **options: Any
) -> Features | None:
    """Extract as `extract` does; of several processes the main one returns the features of all, the others None."""
    if world.size == 1:
        return extract(model, samples, room=room, **options)
    whole: dict[str, NDArray[Any]] = {}

    def for_all(shapes: Shapes) -> dict[str, NDArray[Any]]:
        whole.update(room({name: ((len(samples), *shape[1:]), dtype) for name, (shape, dtype) in shapes.items()}))
        return {name: array[: share(len(samples), world)[1]] for name, array in whole.items()}

    own = extract(model, samples, world=world, room=for_all if world.main else room, **options)
    if not world.main:
        arrays = {"embeddings": own.embeddings, **{f"extra.{name}": array for name, array in own.extras.items()}}
        for part in _parts(arrays, 0, len(own)):
            dist.send(part, dst=0)
        return None
    for rank in range(1, world.size):
        for part in _parts(whole, *share(len(samples), World(rank, world.size))):
            dist.recv(part, src=rank)
    return as_features(samples, whole or {"embeddings": np.zeros((0, 0), np.float32)})


def _parts(arrays: Mapping[str, NDArray[Any]], start: int, stop: int) -> Iterator[Tensor]:
    """Yield the bytes of some rows, in pieces that are sent one by one; nothing is copied."""
    for name in sorted(arrays) if start < stop else ():
        rows = arrays[name][start:stop].reshape(-1).view(np.uint8)
        for place in range(0, len(rows), PIECE):
            yield torch.from_numpy(rows[place : place + PIECE])


def as_features(samples: Sequence[Sample], arrays: Mapping[str, NDArray[Any]]) -> Features:
    """Return the features of `samples` that arrays, named as `extract` does, are the embeddings and extras of."""
    return Features(
        embeddings=arrays["embeddings"],
        identities=np.array([sample.identity for sample in samples], dtype=np.int64),
        cameras=np.array([sample.camera for sample in samples], dtype=np.int64),
        paths=tuple(sample.name for sample in samples),
        extras={name.removeprefix("extra."): array for name, array in arrays.items() if name != "embeddings"},
    )
