"""Open images as (3, H, W) uint8 RGB tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from reidcore.errors import DataError
from reidcore.types import Sample

_MEND = "replace it or take it out"


def read_image(sample: Sample) -> Tensor:
    """Return the image, upright, as (3, H, W) uint8 RGB. Raises DataError that names a file which cannot be read."""
    try:
        if isinstance(sample.image, Path):
            with Image.open(sample.image) as image:
                return as_pixels(image)
        return as_pixels(sample.image.open())
    except FileNotFoundError:
        raise DataError(f"there is no image {sample.name}") from None
    except UnidentifiedImageError:
        raise DataError(f"cannot read the image {sample.name}: it is empty, damaged or no image; {_MEND}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the image {sample.name}: {reason}; {_MEND}") from None


def as_pixels(image: Any) -> Tensor:
    """Return a PIL image or an (H, W, 3) uint8 array as a (3, H, W) uint8 tensor. Raises DataError for others."""
    if isinstance(image, Image.Image):
        array = np.array(_as_rgb(ImageOps.exif_transpose(image)))
    else:
        array = np.array(image, order="C")  # a copy: torch takes neither reversed nor read-only arrays
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise DataError(f"expected an image of shape (H, W, 3) and type uint8, found {array.shape} {array.dtype}")
    return torch.from_numpy(array).permute(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, all of which but the darkest PIL would turn into white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the way that PIL warns one to take
    return image.convert("RGB")
