"""Open images as (3, H, W) uint8 RGB tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from reidcore.errors import DataError
from reidcore.types import Sample


def read_image(sample: Sample) -> Tensor:
    """Return the image, upright, as (3, H, W) uint8 RGB. Raises DataError that names a file which cannot be read."""
    try:
        if isinstance(sample.image, Path):
            with Image.open(sample.image) as image:
                return as_pixels(image)
        return as_pixels(sample.image.open())
    except FileNotFoundError:
        raise DataError(f"there is no image {sample.name}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {sample.name}: {error}; replace it or take it out") from None


def as_pixels(image: Any) -> Tensor:
    """Return a PIL image or an (H, W, 3) uint8 array as a (3, H, W) uint8 tensor. Raises DataError for others."""
    if isinstance(image, Image.Image):
        array = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    else:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise DataError(f"expected an image of shape (H, W, 3) and type uint8, found {array.shape} {array.dtype}")
    return torch.from_numpy(array).permute(2, 0, 1)
