"""What was found, as a picture: a row for each query, the query on the left, the nearest to its right."""

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
    columns = 1 + max(len(item["hits"]) for item in found)
    width, height = TILE[0] + _GAP, TILE[1] + 2 * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (columns * width + 2 * _GAP, len(found) * height + _GAP), "white")
    for row, item in enumerate(found):
        top = row * height + _GAP
        _tile(sheet, (_GAP, top), item["query"], ["query", Path(item["query"]).name])
        for column, hit in enumerate(item["hits"], start=1):
            identity = "identity unknown" if hit["identity"] == UNKNOWN else f"identity {hit['identity']}"
            captions = [f"{hit['rank']}:  {hit['distance']:.4f}", identity]
            _tile(sheet, (2 * _GAP + column * width, top), hit["path"], captions)
    try:
        sheet.save(file)
    except OSError as error:
        raise ReidError(os_message(error, "write", file)) from None


def _tile(sheet: Image.Image, at: tuple[int, int], path: str, captions: Sequence[str]) -> None:
    """Draw one picture, as large as it fits, with two lines below it."""
    left, top = at
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    try:
        picture = Image.fromarray(read_image(Sample(Path(path))).permute(1, 2, 0).numpy())
    except DataError:
        draw.rectangle((left, top, left + TILE[0] - 1, top + TILE[1] - 1), fill="lightgrey")
        for line, text in enumerate(("cannot read", Path(path).name)):
            draw.text((left + 4, top + TILE[1] // 2 + (line - 1) * _LINE), _fit(text, font, TILE[0] - 8), "black", font)
    else:
        scale = min(TILE[0] / picture.width, TILE[1] / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        corner = (left + (TILE[0] - size[0]) // 2, top + TILE[1] - size[1])  # beside its captions
        sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), corner)
    for line, text in enumerate(captions):
        draw.text((left, top + TILE[1] + 2 + line * _LINE), _fit(text, font, TILE[0]), "black", font)


def _fit(text: str, font: Any, width: int) -> str:
    """Return the text, or its end if it is too wide."""
    while font.getlength(text) > width:
        text = "…" + text.removeprefix("…")[1:]
    return text
