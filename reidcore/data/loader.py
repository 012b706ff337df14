"""Batches of images, read and transformed in loader processes.

An image's augmentation depends on (seed, epoch, position in the epoch) only, and where images are mixed on the others
that this process has of the batch: not on the number of loader processes, and not on where a run was resumed. B batch,
H W height and width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reidcore.data.reading import read_image
from reidcore.errors import DataError, ReidError
from reidcore.kinds import Sampler
from reidcore.types import UNKNOWN, Batch, Sample, Stream, World

Key = tuple[int, int, int]
Pipeline = Sequence[Callable[..., Tensor]]


def worker_count(workers: int | None) -> int:
    """Return the number of loader processes: `workers`, or this process's share of the usable cores, at most 8."""
    if workers is not None:
        return workers
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class Loader:
    """Training batches of one stream; its processes live as long as it does.

    Each batch of the sampler is split over the processes of `world` by whole identities.
    """

    def __init__(
        self,
        stream: Stream,
        sampler: Sampler,
        pipeline: Pipeline,
        *,
        size: tuple[int, int],
        seed: int,
        workers: int | None,
        device: torch.device,
        world: World,
    ) -> None:
        self.stream, self.sampler = stream, sampler
        self.plan = _Plan(sampler, np.asarray(stream.labels), world)
        if world.size > 1:  # a batch that cannot be split is found before anything is written
            next(iter(self.plan), None)
        self.device = device
        count = worker_count(workers)
        self.loader = DataLoader(
            _Images(stream.samples, pipeline, size, seed),
            batch_sampler=self.plan,  # type: ignore[arg-type]
            num_workers=count,
            collate_fn=_collate,
            persistent_workers=count > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_yield_to_training,
            generator=torch.Generator(),  # its own, so that making an iterator leaves the global one alone
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches on the device, without the first `skip`. Raises DataError for a bad image."""
        self.plan.epoch, self.plan.skip = epoch, skip
        for item in self.loader:
            images, indices = _unwrap(item)
            labels = torch.as_tensor(np.asarray(self.stream.labels)[indices.numpy()])
            cameras = torch.tensor([self.stream.samples[index].camera for index in indices.tolist()])
            yield Batch(
                images=_to_device(images, self.device),
                labels=labels.long().to(self.device, non_blocking=True),
                cameras=cameras.to(self.device, non_blocking=True),
                indices=indices,
            )


def test_batches(
    samples: Sequence[Sample],
    pipeline: Pipeline,
    *,
    size: tuple[int, int],
    batch: int,
    workers: int | None,
    device: torch.device,
    first: int = 0,
) -> Iterator[Tensor]:
    """Yield (B, 3, H, W) uint8 images in the order of `samples`, on the device. Raises DataError for a bad image.

    What is random in the pipeline depends on an image's place, counted from `first`, and on nothing else.
    """
    keys = [(0, first + index, index) for index in range(len(samples))]
    loader = DataLoader(
        _Images(samples, pipeline, size, seed=0),
        batch_sampler=[keys[start : start + batch] for start in range(0, len(keys), batch)],  # type: ignore[arg-type]
        num_workers=min(worker_count(workers), len(keys) // batch),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_yield_to_training,
        generator=torch.Generator(),
    )
    for item in loader:
        yield _to_device(_unwrap(item)[0], device)


def split_batch(labels: NDArray[Any], world: World) -> NDArray[Any]:
    """Return the places of a global batch, with (B,) `labels`, that are this process's: whole identities.

    Images of one identity stand together, and each unlabelled one is an identity; they are divided as equally as they
    go. Raises DataError, in every process, when there are fewer identities than processes.
    """
    starts = np.flatnonzero((labels[1:] != labels[:-1]) | (labels[1:] == UNKNOWN)) + 1
    groups = np.split(np.arange(len(labels)), starts)
    if len(groups) < world.size:
        raise DataError(
            f"a batch of {len(groups)} identities cannot be split over {world.size} processes; "
            f"let the sampler take at least {world.size}, or use fewer processes"
        )
    mine = np.array_split(np.arange(len(groups)), world.size)[world.rank]
    return np.concatenate([groups[group] for group in mine])


class _Plan:
    """The keys (epoch, position, index) of each batch of the epoch that is set; a DataLoader's batch sampler."""

    def __init__(self, sampler: Sampler, labels: NDArray[Any], world: World) -> None:
        self.sampler, self.labels, self.world = sampler, labels, world
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return len(self.sampler) - self.skip

    def __iter__(self) -> Iterator[list[Key]]:
        position = 0
        for number, batch in enumerate(self.sampler.batches(self.epoch)):
            indices = np.asarray(batch)
            if number >= self.skip:
                places = split_batch(self.labels[indices], self.world)
                yield [(self.epoch, position + int(place), int(indices[place])) for place in places]
            position += len(indices)


class _Images(Dataset[Any]):
    """Images, read and transformed a batch at a time, since a transform that mixes waits for all images of its batch.

    The pipeline is cut into segments before each such transform.
    """

    def __init__(self, samples: Sequence[Sample], pipeline: Pipeline, size: tuple[int, int], seed: int) -> None:
        self.samples, self.size, self.seed = samples, size, seed
        cuts = [place for place, transform in enumerate(pipeline) if _mixes(transform)]
        self.segments = [pipeline[start:end] for start, end in pairwise([0, *cuts, len(pipeline)])]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]] | ReidError:
        try:
            with torch.random.fork_rng(devices=[]):
                images = [self._transform(0, key, read_image(self.samples[key[2]])) for key in keys]
                for segment in range(1, len(self.segments)):
                    images = [
                        self._transform(segment, key, image, images[:place] + images[place + 1 :])
                        for place, (key, image) in enumerate(zip(keys, images, strict=True))
                    ]
            return [(self._checked(image, index), index) for image, (_, _, index) in zip(images, keys, strict=True)]
        except ReidError as error:  # an exception would cross processes as a stack trace in a text
            return error

    def _transform(self, segment: int, key: Key, image: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        epoch, position, _ = key
        # the first segment's numbers are the same whether another one follows or not
        entropy = [self.seed, epoch, position, segment] if segment else [self.seed, epoch, position]
        random = np.random.SeedSequence(entropy)
        torch.default_generator.manual_seed(int(random.generate_state(1, np.uint64)[0] >> 1))
        for transform in self.segments[segment]:
            image = transform(image, others) if _mixes(transform) else transform(image)
        return image

    def _checked(self, image: Tensor, index: int) -> Tensor:
        if tuple(image.shape[1:]) != self.size:
            found = "x".join(map(str, image.shape[1:]))
            expected = "x".join(map(str, self.size))
            name = self.samples[index].name
            raise DataError(f"transform: {name} came out as {found} pixels; expected the input size {expected}")
        return image


def _mixes(transform: Callable[..., Tensor]) -> bool:
    return getattr(transform, "mixes", False)


def _collate(items: list[tuple[Tensor, int]] | ReidError) -> tuple[Tensor, Tensor] | ReidError:
    if isinstance(items, ReidError):
        return items
    images, indices = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(indices)


def _unwrap(item: tuple[Tensor, Tensor] | ReidError) -> tuple[Tensor, Tensor]:
    if isinstance(item, ReidError):
        raise copy.copy(item)  # an error that is held by a frame of its own traceback keeps the processes alive
    return item


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def _yield_to_training(worker: int) -> None:
    """Let a loader process take what training leaves: on a CPU, threads that wait for each other lose far more."""
    if hasattr(os, "nice"):
        os.nice(19)
