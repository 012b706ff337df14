"""Features kept in a run folder, so that another protocol or post-processing needs no second extraction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from attrs import frozen

from reidcore.checkpoint import load_tensors, save_tensors
from reidcore.errors import DataError, RunError, os_message
from reidcore.types import Features, Sample


@frozen
class KeptFeatures:
    """A folder of features, each file named by all that they depend on.

    made_by: a text that differs for another model, input size and the like.
    """

    folder: Path
    made_by: str

    def get(self, samples: Sequence[Sample], cameras: bool, extract: Callable[[], Features]) -> Features:
        """Return the features of samples: those that are there if neither model nor images changed, else extracted.

        cameras: whether the model is told the images' cameras.
        """
        key = hashlib.sha256(repr((self.made_by, cameras)).encode())
        for sample in samples:
            key.update(repr((sample.image, sample.identity, sample.camera, _age(sample))).encode())
        file = self.folder / f"{key.hexdigest()[:32]}.safetensors"
        if file.is_file():
            try:
                tensors = {name: tensor.numpy() for name, tensor in load_tensors(file).items()}
            except RunError:  # damaged, and made again
                pass
            else:
                embeddings, identities, cams = (tensors.pop(name) for name in ("embeddings", "identities", "cameras"))
                paths = [sample.name for sample in samples]
                extras = {name.removeprefix("extra."): values for name, values in tensors.items()}
                return Features(embeddings, identities, cams, paths, extras=extras)
        features = extract()
        arrays = {name: getattr(features, name) for name in ("embeddings", "identities", "cameras")}
        arrays |= {f"extra.{name}": values for name, values in features.extras.items()}
        save_tensors(file, {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, {})
        return features


def _age(sample: Sample) -> tuple[int, int] | None:
    """Return the size of a file and when it was written."""
    if not isinstance(sample.image, Path):
        return None
    try:
        status = sample.image.stat()
    except OSError as error:
        raise DataError(os_message(error, "read", sample.image)) from None
    return status.st_size, status.st_mtime_ns
