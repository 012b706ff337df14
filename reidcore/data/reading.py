"""Open images as (3, H, W) uint8 RGB tensors."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from reidcore.errors import DataError
from reidcore.types import Sample, Splits

_MEND = "replace it or take it out"
_DAMAGE = (OSError, SyntaxError, ValueError)
"""What PIL raises for most damages. For some it raises whatever its parser stumbles over."""
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to bring an image upright, by its EXIF orientation."""


def read_image(sample: Sample) -> Tensor:
    """Return the image, upright, as (3, H, W) uint8 RGB. Raises DataError that names a file which cannot be read.

    Of several frames it is the first. Transparency is ignored, 16 bits are made 8. Refused are pixels of more bits, and
    images of more than 179 million pixels (twice Pillow's MAX_IMAGE_PIXELS): they would fill the memory.
    """
    try:
        if isinstance(sample.image, Path):
            with Image.open(sample.image) as image:
                return as_pixels(image)
        return as_pixels(sample.image.open())
    except FileNotFoundError:
        raise DataError(f"there is no image {sample.name}") from None
    except UnidentifiedImageError:
        raise DataError(f"cannot read the image {sample.name}: it is empty, damaged or no image; {_MEND}") from None
    except Image.DecompressionBombError:
        most = f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,}"
        reason = f"it says that it has more than {most} pixels, too many to be opened safely"
        raise DataError(f"cannot read the image {sample.name}: {reason}; shrink it or take it out") from None
    except Exception as error:
        if not isinstance(error, _DAMAGE) and not isinstance(sample.image, Path):
            raise  # a mistake in how the picture is drawn
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"cannot read the image {sample.name}: {reason}; {_MEND}") from None


def image_size(file: Path) -> tuple[int, int]:
    """Return width and height as the header of a file says them. Raises what PIL does where that cannot read it."""
    with file.open("rb", buffering=0) as stream:
        size = _jpeg_size(stream.read(4096))
    if size is None:
        with Image.open(file) as image:
            size = image.size
    return size


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Return width and height from the beginning of a usual JPEG file, ten times as fast as PIL; None for others."""
    place = 2
    while head[:2] == b"\xff\xd8" and head[place : place + 1] == b"\xff" and place + 9 <= len(head):
        kind, length, bits, height, width = struct.unpack_from(">xBHBHH", head, place)
        if kind in (0xC0, 0xC1, 0xC2):  # a frame: baseline, extended or progressive
            usual = bits == 8 and 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0)
            return (width, height) if usual else None
        place += 2 + length
    return None


def leave_out_unreadable(splits: Splits, paired: bool) -> tuple[Splits, list[str]]:
    """Read every image once. Return the splits without those that cannot be read, and what is wrong with each.

    paired: whether each query is compared with the gallery image at its place only, and left out with it.
    Raises DataError when no image can be read.
    """
    parts = (splits.train, splits.query, splits.gallery)
    samples = list({sample.name: sample for part in parts for sample in part}.values())
    with ThreadPoolExecutor(worker_count(None)) as pool:  # decoders leave the interpreter to the others meanwhile
        looks = dict(zip([sample.name for sample in samples], pool.map(_fault, samples), strict=True))
    faults = [fault for fault in looks.values() if fault]
    if not faults:
        return splits, []
    if len(faults) == len(samples):
        raise DataError(f"none of {len(samples)} images can be read; the first: {faults[0]}")
    train, query, gallery = ([not looks[sample.name] for sample in part] for part in parts)
    if paired:
        query = gallery = [all(pair) for pair in zip(query, gallery, strict=True)]
    kept = [tuple(compress(part, good)) for part, good in zip(parts, (train, query, gallery), strict=True)]
    return Splits(kept[0], kept[1], kept[2], splits.notes), faults


def _fault(sample: Sample) -> str:
    """Return what is wrong with an image, or nothing."""
    try:
        read_image(sample)
    except DataError as error:
        return str(error)
    return ""


def worker_count(workers: int | None) -> int:
    """Return the number of loader processes: `workers`, or this process's share of the usable cores, at most 8."""
    if workers is not None:
        return workers
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def as_pixels(image: Any) -> Tensor:
    """Return a PIL image or an (H, W, 3) uint8 array as a (3, H, W) uint8 tensor. Raises DataError for others."""
    if isinstance(image, Image.Image):
        array = np.array(_as_rgb(_upright(image)))
    else:
        array = np.array(image, order="C")  # a copy: torch takes neither reversed nor read-only arrays
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise DataError(f"expected an image of shape (H, W, 3) and type uint8, found {array.shape} {array.dtype}")
    return torch.from_numpy(array).permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # some formats turn themselves
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # PIL's parser raises many kinds; the pixels are good although the notes on them are not
        turn = None
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, all of which but the darkest PIL would turn into white
        grey = np.asarray(image)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are numbers with a fraction, of which nothing says what is white")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the way that PIL warns one to take
    return image if image.mode == "RGB" else image.convert("RGB")
