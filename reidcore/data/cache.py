"""Decoded images in memory that loader processes share."""

from __future__ import annotations

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

_COUNT, _ROW = 8, 24
"""Bytes of the number of bytes in use, and of a row of the table: first byte, height, width."""


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
    file without a name, so that nothing is left of it after a kill, and goes to other processes whether they are
    forked or spawned. It takes what is written only, and is written and read as a file: a store to a fresh page of
    mapped memory costs twice as much.

    The file holds the number of bytes in use; a row for each image, zeros where it is not kept; the pixels.
    """

    def __init__(self, samples: Sequence[Sample], room: int) -> None:
        self._images = [sample.image for sample in samples]
        # by identity, since pictures need not be hashable; the list above keeps them alive
        self._rows = {id(image): row for row, image in enumerate(self._images)}
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("reidcore images")
        else:
            with tempfile.TemporaryFile() as stream:
                file = os.dup(stream.fileno())
        start = _COUNT + _ROW * len(samples)
        os.ftruncate(file, start)
        self._open(file, start, start + room)

    def _open(self, file: int, start: int, end: int) -> None:
        weakref.finalize(self, os.close, file)
        self._file, self._start, self._end = file, start, end
        self._full = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self._file), self._start, self._end)

    @property
    def used(self) -> int:
        """The bytes of the images that are kept."""
        return int(self._read(0, np.empty(1, np.int64))[0])

    def rows(self, samples: Sequence[Sample]) -> list[int | None]:
        """Return the row of each sample, None for one that the cache was not made for; not in loader processes."""
        return [self._rows.get(id(sample.image)) for sample in samples]

    def get(self, row: int | None) -> Tensor | None:
        """Return a copy of an image that is kept, (3, H, W) uint8."""
        if row is None:
            return None
        first, height, width = self._read(_COUNT + _ROW * row, np.empty(3, np.int64)).tolist()
        if not height:
            return None
        return torch.from_numpy(self._read(first, np.empty((height, width, 3), np.uint8))).permute(2, 0, 1)

    def put(self, row: int | None, image: Tensor) -> None:
        """Keep a (3, H, W) uint8 image if there is room. Two processes may keep the same one."""
        if row is None or self._full:
            return
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        with self._alone():
            used = self.used
            first = self._start + used
            self._full = first + pixels.nbytes > self._end
            if self._full:
                return
            os.pwrite(self._file, np.int64(used + pixels.nbytes).tobytes(), 0)
        if os.pwrite(self._file, pixels.data, first) == pixels.nbytes:
            os.pwrite(self._file, np.array([first, *image.shape[1:]], np.int64).data, _COUNT + _ROW * row)

    def _read(self, first: int, into: Any) -> Any:
        os.preadv(self._file, [into], first)
        return into

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time go on; unlike a semaphore's, the lock of a killed process is gone."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _attach(file: Any, start: int, end: int) -> ImageCache:
    cache = ImageCache.__new__(ImageCache)
    cache._open(file.detach(), start, end)
    return cache
