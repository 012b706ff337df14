"""Small pictures, each kept once in a page."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from reidcore.data import read_image
from reidcore.errors import DataError
from reidcore.types import Sample

BUDGET = 8_500_000
"""Bytes of all pictures of a page, which is to stay under 15 MB: some 5 are the plotting library."""

_TRIED = 64
_QUALITY = 60
_LEAST = 40


class Pictures:
    """Collects samples, and makes a picture of each that fits a tile."""

    def __init__(self, tile: tuple[int, int], budget: int = BUDGET) -> None:
        """tile: (height, width)."""
        self.tile, self.budget = tile, budget
        self.numbers: dict[str, int] = {}
        self.samples: list[Sample] = []

    def number(self, sample: Sample) -> int:
        """Return the number of a sample's picture."""
        found = self.numbers.setdefault(sample.name, len(self.samples))
        if found == len(self.samples):
            self.samples.append(sample)
        return found

    @property
    def names(self) -> list[str]:
        """What the pictures are of: paths below the folder that holds all of them."""
        files = [str(sample.image) for sample in self.samples if isinstance(sample.image, Path)]
        root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
        return [
            os.path.relpath(sample.name, root) if isinstance(sample.image, Path) and root else sample.name
            for sample in self.samples
        ]

    def encode(self, done: Callable[[int], None] = lambda count: None) -> list[str]:
        """Return the pictures as data URLs, "" for a file that cannot be read. `done` is told how many there are.

        Where there are so many that they would be more than the budget, they are smaller.
        """
        tried = self.samples[:: max(1, len(self.samples) // _TRIED)][:_TRIED]
        mean = sum(map(len, self._encode(tried, self.tile))) / max(1, len(tried))
        scale = min(1.0, 0.95 * (self.budget / max(1.0, mean * len(self.samples))) ** 0.5)
        smallest = min(1.0, _LEAST / min(self.tile))
        height, width = (max(1, round(side * max(scale, smallest))) for side in self.tile)
        return self._encode(self.samples, (height, width), done)

    def _encode(
        self, samples: Sequence[Sample], tile: tuple[int, int], done: Callable[[int], None] = lambda count: None
    ) -> list[str]:
        found = []
        with ThreadPoolExecutor() as pool:
            for url in pool.map(partial(_thumbnail, tile=tile), samples):
                found.append(url)
                done(len(found))
        return found


def _thumbnail(sample: Sample, tile: tuple[int, int]) -> str:
    try:
        picture = Image.fromarray(read_image(sample).permute(1, 2, 0).numpy())
    except DataError:
        return ""
    picture.thumbnail((tile[1], tile[0]), Image.Resampling.BICUBIC)
    return data_url(picture)


def data_url(picture: Any) -> str:
    """Return a picture as a text that a page shows."""
    stream = BytesIO()
    picture.save(stream, "webp", quality=_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
