"""Readers of the test sets of partial and occluded people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reidcore.errors import DataError
from reidcore.types import Sample, Splits

_NAME = re.compile(r"(\d{1,9})(?:_.*)?")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}


def read(root: Path, layouts: Sequence[tuple[str, str]], published: tuple[int, int]) -> Splits:
    """Read the queries and the gallery from the folders of the first layout that is there.

    Images are called `<identity>.<ext>` or `<identity>_<anything>.<ext>`, and may lie in a folder for each identity.
    Queries are camera 0 and the gallery camera 1: the number that follows the identity in a name counts images, and
    read as a camera it would make junk of matches. Notes counts that are not the published ones, of queries and
    gallery. Raises DataError for a missing folder, one without images, and for names of another form.
    """
    for folders in layouts:
        if all((root / folder).is_dir() for folder in folders):
            break
    else:
        expected = ", or ".join(f"{query}/ and {gallery}/" for query, gallery in layouts)
        where = "" if root.is_absolute() else f" (in {Path.cwd()})"
        raise DataError(f"{root}{where} does not hold the folders {expected}")
    query, gallery = (_images(root / folder, camera) for camera, folder in enumerate(folders))
    notes = [
        f"{root / folder}: found {len(found)} images; published {count}"
        for folder, found, count in zip(folders, (query, gallery), published, strict=True)
        if len(found) != count
    ]
    return Splits(query=query, gallery=gallery, notes=notes)


def _images(folder: Path, camera: int) -> list[Sample]:
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in _SUFFIXES and file.name[0] != "."]
    if not files:
        raise DataError(f"{folder} holds no images; expected files <identity>_<anything>.jpg")
    matches = [_NAME.fullmatch(file.stem) for file in files]
    if faults := [file.name for file, match in zip(files, matches, strict=True) if match is None]:
        raise DataError(
            f"{folder}: the names of {len(faults)} images do not begin with an identity: {', '.join(faults[:3])}"
            f"{' …' if len(faults) > 3 else ''}; expected <identity>_<anything>.jpg"
        )
    return [Sample(file, int(match[1]), camera) for file, match in zip(files, matches, strict=True) if match]
