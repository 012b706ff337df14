"""Pictures in rows: what was found, with each query on the left and the nearest to its right; samples of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from reidcore.data import read_image
from reidcore.errors import DataError, ReidError, os_message
from reidcore.retrieval.store import refuse_existing
from reidcore.types import UNKNOWN, Sample

TILE = (128, 192)
_GAP, _LINE, _SIZE = 8, 15, 12


def check_sheet(file: Path) -> None:
    """Raise ReidError for a file that exists, or whose suffix is of no picture that can be written."""
    refuse_existing(file)
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise ReidError(f"cannot draw {file}: the suffix '{file.suffix}' is of no kind of picture; write .png or .jpg")


def draw_sheet(found: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw `found`, as `reidcore search --json` prints it. A picture that cannot be read is a grey box that says so."""
    rows = []
    for item in found:
        row = [(_picture(Sample(Path(item["query"]))), ["query", Path(item["query"]).name])]
        for hit in item["hits"]:
            identity = "identity unknown" if hit["identity"] == UNKNOWN else f"identity {hit['identity']}"
            row.append((_picture(Sample(Path(hit["path"]))), [f"{hit['rank']}:  {hit['distance']:.4f}", identity]))
        rows.append(row)
    _draw(rows, file)


def draw_samples(rows: Sequence[Sequence[Sample]], file: Path) -> None:
    """Draw samples of a data set, a row for each identity."""

    def captions(sample: Sample) -> list[str]:
        camera = "" if sample.camera == UNKNOWN else f"camera {sample.camera}"
        return [f"identity {sample.identity}", camera]

    _draw([[(_picture(sample), captions(sample)) for sample in row] for row in rows], file)


def _draw(rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]], file: Path) -> None:
    heights = [max(picture.height for picture, _ in row) for row in rows]
    width = max(len(row) for row in rows) * (TILE[0] + _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (width, sum(heights) + len(rows) * (2 * _LINE + 2 * _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    bottom = 0
    for row, height in zip(rows, heights, strict=True):
        bottom += _GAP + height
        for column, (picture, captions) in enumerate(row):
            left = _GAP * (1 + (column > 0)) + column * (TILE[0] + _GAP)
            sheet.paste(picture, (left + (TILE[0] - picture.width) // 2, bottom - picture.height))
            for line, text in enumerate(captions):
                draw.text((left, bottom + 2 + line * _LINE), _fit(text, font, TILE[0]), "black", font)
        bottom += 2 * _LINE + _GAP
    try:
        sheet.save(file)
    except OSError as error:
        raise ReidError(os_message(error, "write", file)) from None


def _picture(sample: Sample) -> Image.Image:
    """Return the picture, as large as it fits a tile, or a grey box if it cannot be read."""
    try:
        picture = Image.fromarray(read_image(sample).permute(1, 2, 0).numpy())
    except DataError:
        box = Image.new("RGB", (TILE[0], TILE[0]), "lightgrey")
        draw, font = ImageDraw.Draw(box), ImageFont.load_default(_SIZE)
        for line, text in enumerate(("cannot read", Path(sample.name).name)):
            draw.text((4, TILE[0] // 2 + (line - 1) * _LINE), _fit(text, font, TILE[0] - 8), "black", font)
        return box
    scale = min(TILE[0] / picture.width, TILE[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _fit(text: str, font: Any, width: int) -> str:
    """Return the text, or its end if it is too wide."""
    while font.getlength(text) > width:
        text = "…" + text.removeprefix("…")[1:]
    return text
