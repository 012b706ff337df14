"""Decoded images in memory that loader processes share."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidcore.machine import free_memory
from reidcore.types import Sample

if sys.platform != "win32":
    import fcntl

_SHARE = 3
"""What part of the free memory "auto" takes, one of so many: several runs may start at the same time."""


def cache_room(gib: float | str, processes: int) -> int:
    """Return the bytes that each of `processes` may keep: `gib` in all, or with "auto" a third of the free memory."""
    if sys.platform == "win32":
        return 0
    free = free_memory()
    wanted = free / _SHARE if gib == "auto" else float(gib) * 2**30
    return int(min(wanted, free) / processes)


class ImageCache:
    """Keeps images as they come out of the file and of what does not change from epoch to epoch.

    The process that reads an image first keeps it for all; when the room is filled, no more are kept. The memory is a
    file without a name, so that nothing is left of it after a kill. It goes to other processes whether they are forked
    or spawned. Only the pages that are filled take memory.

    The file holds the number of bytes in use; a row for each image, (first byte, height, width) or zeros; the pixels.
    """

    def __init__(self, samples: Sequence[Sample], room: int) -> None:
        # by identity: pictures need not be hashable
        self._rows = {id(image): row for row, image in enumerate(sample.image for sample in samples)}
        self._images = [sample.image for sample in samples]  # alive, or another one could get the identity of one
        size = _start(len(samples)) + room
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("reidcore images")
        else:
            with tempfile.TemporaryFile() as stream:
                file = os.dup(stream.fileno())
        os.ftruncate(file, size)
        self._map(file, len(samples))

    def _map(self, file: int, images: int) -> None:
        weakref.finalize(self, os.close, file)
        self._file = file
        memory = np.frombuffer(mmap.mmap(file, 0), np.uint8)
        start = _start(images)
        self._used = memory[:8].view(np.int64)
        self._table = memory[8:start].view(np.int64).reshape(images, 3)
        self._pixels = memory[start:]

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self._file), len(self._table))

    @property
    def used(self) -> int:
        """The bytes of the images that are kept."""
        return int(self._used[0])

    def rows(self, samples: Sequence[Sample]) -> list[int | None]:
        """Return the row of each sample, None for one that the cache was not made for; not in loader processes."""
        return [self._rows.get(id(sample.image)) for sample in samples]

    def get(self, row: int | None) -> Tensor | None:
        """Return a copy of an image that is kept, (3, H, W) uint8."""
        if row is None:
            return None
        first, height, width = self._table[row].tolist()
        if not height:
            return None
        pixels = self._pixels[first : first + height * width * 3].reshape(height, width, 3)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def put(self, row: int | None, image: Tensor) -> None:
        """Keep a (3, H, W) uint8 image if there is room. Two processes may keep the same one."""
        size = image.numel()
        if row is None or self._used[0] + size > len(self._pixels):
            return
        with self._alone():
            first = int(self._used[0])
            if first + size > len(self._pixels):
                return
            self._used[0] += size
        self._pixels[first : first + size] = image.permute(1, 2, 0).reshape(-1).numpy()
        with self._alone():  # so that no process sees the row before the pixels
            self._table[row] = first, *image.shape[1:]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time go on; unlike a semaphore, the lock of a killed process is gone."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _attach(file: Any, images: int) -> ImageCache:
    cache = ImageCache.__new__(ImageCache)
    cache._map(file.detach(), images)
    return cache


def _start(images: int) -> int:
    """Return where the pixels begin."""
    return 8 + 24 * images
