"""Where features are while they are worked on: in memory, or in files that are mapped."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from reidcore.checkpoint import load_tensors
from reidcore.errors import DataError, RunError, os_message
from reidcore.retrieval.extract import Room, Shapes, as_features, in_memory
from reidcore.retrieval.store import header
from reidcore.types import Features, Sample


def room_for(memory: float) -> Room:
    """Return what makes arrays in main memory up to `memory` bytes, and beyond it in a temporary file.

    The file has no name and is gone with the arrays. Raises RunError when the disk has no space for it.
    """

    def room(shapes: Shapes) -> dict[str, NDArray[Any]]:
        places = header(shapes, {})[1]
        if places[-1] <= memory:
            return in_memory(shapes)
        folder = Path(tempfile.gettempdir())
        try:
            with tempfile.TemporaryFile(dir=folder) as stream:
                return _map(stream, b"", shapes, places)
        except OSError as error:
            raise RunError(os_message(error, "write a temporary file in", folder)) from None

    return room


@frozen
class KeptFeatures:
    """A folder of features, each file named by all that they depend on, so that another protocol or post-processing
    needs no second extraction.

    made_by: a text that differs for another model, input size and the like.
    """

    folder: Path
    made_by: str

    def get(self, samples: Sequence[Sample], made_with: object, extract: Callable[[Room], Features]) -> Features:
        """Return the features of samples: those that are there if neither model nor images changed, else extracted.

        made_with: what else they depend on, told by its repr. Raises RunError when the disk is full.
        """
        key = hashlib.sha256(repr((self.made_by, made_with)).encode())
        for sample in samples:
            key.update(repr((sample.image, sample.identity, sample.camera, _age(sample))).encode())
        file = self.folder / f"{key.hexdigest()[:32]}.safetensors"
        if file.is_file():
            try:
                return as_features(samples, {name: tensor.numpy() for name, tensor in load_tensors(file).items()})
            except RunError:  # damaged, and made again
                pass
        partial = file.with_name(f".{file.name}.partial")

        def room(shapes: Shapes) -> dict[str, NDArray[Any]]:
            text, places = header(shapes, {})
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb+") as stream:
                    return _map(stream, text, shapes, places)
            except OSError as error:
                raise RunError(os_message(error, "write", file)) from None

        try:
            features = extract(room)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return features


def _map(stream: Any, text: bytes, shapes: Shapes, places: Sequence[int]) -> dict[str, NDArray[Any]]:
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
