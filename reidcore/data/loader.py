"""Batches of images, read and transformed in loader processes.

An image's augmentation depends on (seed, epoch, position in the epoch) only, and where images are mixed on the others
that this process has of the batch: not on the number of loader processes, and not on where a run was resumed. B batch,
H W height and width.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from reidcore.data.cache import ImageCache
from reidcore.data.reading import read_image, worker_count
from reidcore.errors import DataError, ReidError, RunError
from reidcore.kinds import Sampler
from reidcore.types import UNKNOWN, Batch, Sample, Stream, World

Key = tuple[int, int, int]
Pipeline = Sequence[Callable[..., Tensor]]


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
        cache: ImageCache | None = None,
    ) -> None:
        self.stream, self.sampler = stream, sampler
        self.plan = _Plan(sampler, np.asarray(stream.labels), world)
        if world.size > 1:  # a batch that cannot be split is found before anything is written
            next(iter(self.plan), None)
        self.device = device
        count = worker_count(workers)
        self.loader = DataLoader(
            _Images(stream.samples, pipeline, size, seed, cache),
            batch_sampler=self.plan,  # type: ignore[arg-type]
            num_workers=count,
            collate_fn=_as_it_is,
            persistent_workers=count > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own, so that making an iterator leaves the global one alone
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches on the device, without the first `skip`.

        Raises DataError for a bad image, and RunError when a loader process was killed.
        """
        self.plan.epoch, self.plan.skip = epoch, skip
        for images, indices in _items(self.loader):
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
    """Yield (B, 3, H, W) uint8 images in the order of `samples`, on the device.

    What is random in the pipeline depends on an image's place, counted from `first`, and on nothing else. Raises
    DataError for a bad image, and RunError when a loader process was killed.
    """
    keys = [(0, first + index, index) for index in range(len(samples))]
    loader = DataLoader(
        _Images(samples, pipeline, size, seed=0),
        batch_sampler=[keys[start : start + batch] for start in range(0, len(keys), batch)],  # type: ignore[arg-type]
        num_workers=min(worker_count(workers), len(keys) // batch),
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )
    for images, _ in _items(loader):
        yield _to_device(images, device)


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

    The pipeline is cut into segments before each such transform. What comes before the first random one is done once
    an image, if a cache keeps what comes out of it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pipeline: Pipeline,
        size: tuple[int, int],
        seed: int,
        cache: ImageCache | None = None,
    ) -> None:
        self.samples, self.size, self.seed, self.cache = samples, size, seed, cache
        self.rows = cache.rows(samples) if cache else []
        self.fixed = list(takewhile(lambda transform: not getattr(transform, "random", True), pipeline))
        pipeline = pipeline[len(self.fixed) :]
        cuts = [place for place, transform in enumerate(pipeline) if _mixes(transform)]
        self.segments = [pipeline[start:end] for start, end in pairwise([0, *cuts, len(pipeline)])]

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor] | ReidError:
        """Return the (B, 3, H, W) images and their (B,) indices."""
        try:
            with torch.random.fork_rng(devices=[]):
                images = [self._transform(0, key, self._read(key[2])) for key in keys]
                for segment in range(1, len(self.segments)):
                    images = [
                        self._transform(segment, key, image, images[:place] + images[place + 1 :])
                        for place, (key, image) in enumerate(zip(keys, images, strict=True))
                    ]
            indices = [index for _, _, index in keys]
            rows = [self._checked(*item).permute(1, 2, 0) for item in zip(images, indices, strict=True)]
            batch: Tensor = default_collate(rows)  # in a loader process this is memory that is shared with training
            return batch.permute(0, 3, 1, 2), torch.tensor(indices)
        except ReidError as error:  # an exception would cross processes as a stack trace in a text
            return error

    def _read(self, index: int) -> Tensor:
        """Return an image as it comes to the first random transform, from the cache if that has it."""
        kept = self.cache.get(self.rows[index]) if self.cache else None
        if kept is not None:
            return kept
        image = read_image(self.samples[index])
        for transform in self.fixed:
            image = transform(image)
        if self.cache:
            self.cache.put(self.rows[index], image)
        return image

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


def _as_it_is(batch: Any) -> Any:
    return batch


def _items(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a loader makes. Raises the errors that it made, and RunError when one of its processes was killed."""
    try:
        with _own_signals():
            batches = iter(loader)
        for item in batches:
            if isinstance(item, ReidError):
                raise copy.copy(item)  # one that is held by a frame of its own traceback keeps the processes alive
            yield item
    except (RuntimeError, ConnectionError, EOFError) as error:
        # killed while it waited, or while it handed a batch over
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        raise RunError(
            "a process that reads images was killed, most likely because memory ran out; lower input.workers or "
            "input.cache, or enlarge /dev/shm if it is small, as in a container; a training goes on with --resume"
        ) from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put the handler of ended processes back: a DataLoader's raises anywhere, also in the middle of a step.

    The DataLoader also finds what has ended when it waits for it.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def _start_worker(worker: int) -> None:
    """Let a loader process take what training leaves: on a CPU, threads that wait for each other lose far more.

    Ctrl-C is for the training, which may want more batches before it stops.
    """
    if hasattr(os, "nice"):
        os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
