"""Where features are while they are worked on: in memory, or in files that are mapped."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.checkpoint import load_tensors
from reidcore.errors import DataError, RunError, os_message
from reidcore.retrieval.extract import Room, Shapes, as_features, in_memory
from reidcore.retrieval.store import header
from reidcore.types import Features, Sample

_STALE = 24 * 3600.0  # seconds after which a partial file is nobody's


def room_for(memory: float, folder: Path | None = None) -> Room:
    """Return what makes arrays in main memory, `memory` bytes in all, and what is more in temporary files of a folder.

    They have no names and are gone with the arrays; without a folder they are where temporary files are. Raises
    RunError when the disk has no space for them.
    """
    left = memory

    def room(shapes: Shapes) -> dict[str, NDArray[Any]]:
        nonlocal left
        places = header(shapes, {})[1]
        if places[-1] <= left:
            left -= places[-1]
            return in_memory(shapes)
        where = folder or Path(tempfile.gettempdir())
        try:
            with tempfile.TemporaryFile(dir=where) as stream:
                return _map(stream, b"", places, shapes)
        except OSError as error:
            raise RunError(
                f"{os_message(error, 'write a temporary file in', where)}; it is for features that are more than "
                "evaluation.memory"
            ) from None

    return room


@frozen
class KeptFeatures:
    """A folder of features, each file named by all that they depend on, so that another protocol or post-processing
    needs no second extraction, unless it is the first to need an extra.

    made_by: a text that differs for another model, input size and the like.
    """

    folder: Path
    made_by: str

    def get(
        self,
        samples: Sequence[Sample],
        made_with: object,
        extras: Collection[str],
        extract: Callable[[Collection[str], Room], Features],
    ) -> Features:
        """Return the features of samples, with these extras at least: those that are there if neither model nor images
        changed, else extracted.

        made_with: what else they depend on, told by its repr. Raises RunError when the disk is full.
        """
        key = hashlib.sha256(repr((self.made_by, made_with)).encode())
        for sample in samples:
            key.update(repr((sample.image, sample.identity, sample.camera, _age(sample))).encode())
        file = self.folder / f"{key.hexdigest()[:32]}.safetensors"
        if file.is_file():
            try:
                found = as_features(samples, {name: tensor.numpy() for name, tensor in load_tensors(file).items()})
            except RunError:  # damaged, and made again
                pass
            else:
                if found.extras.keys() >= set(extras):
                    return found
                extras = {*extras, *found.extras}
        partial = self.folder / f".{uuid4().hex}.partial"  # its own, as another process may be at the same

        def room(shapes: Shapes) -> dict[str, NDArray[Any]]:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for old in self.folder.glob(".*.partial"):  # of processes that were killed
                    if time.time() - old.stat().st_mtime > _STALE:
                        old.unlink()
                with partial.open("xb+") as stream:
                    return _map(stream, *header(shapes, {}), shapes)
            except OSError as error:
                raise RunError(os_message(error, "write", file)) from None

        try:
            features = extract(extras, room)
            for array in (features.embeddings, *features.extras.values()):
                array.flush()
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return features


def _map(stream: Any, text: bytes, places: Sequence[int], shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Map arrays into a file, after a text. Raises OSError when the disk has no space: later it would be a crash."""
    stream.write(text)
    stream.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, len(text) + places[-1])
    else:
        stream.truncate(len(text) + places[-1])
    return {
        name: np.memmap(stream, dtype, "r+", len(text) + place, shape)
        for (name, (shape, dtype)), place in zip(shapes.items(), places, strict=False)
    }


def _age(sample: Sample) -> tuple[int, int] | None:
    """Return the size of a file and when it was written."""
    if not isinstance(sample.image, Path):
        return None
    try:
        status = sample.image.stat()
    except OSError as error:
        raise DataError(os_message(error, "read", sample.image)) from None
    return status.st_size, status.st_mtime_ns
