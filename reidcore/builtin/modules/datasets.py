"""Readers of lists of images. The images themselves are opened when they are needed."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from reidcore.errors import DataError, first_of
from reidcore.types import UNKNOWN, Sample, Splits

_FOLDER = re.compile(r"(-?\d{1,18})_c(\d{1,18})(?:_.*)?")
_SPLITS = ("train", "query", "gallery")


def folder(root: Path) -> Splits:
    """Read `root`/{train,query,gallery}/<identity>_c<camera>_<anything>.<ext>.

    A set may lack `train`, or both `query` and `gallery`. Raises DataError when a folder or a name is wrong.
    """
    require_folder(root, "train/, query/ and gallery/ with files <identity>_c<camera>_<anything>.<ext>")
    if not any((root / split).is_dir() for split in _SPLITS):
        raise DataError(f"{root} holds none of train/, query/ and gallery/; put the images into these folders")
    if (root / "query").is_dir() != (root / "gallery").is_dir():
        found, lacking = ("query", "gallery") if (root / "query").is_dir() else ("gallery", "query")
        raise DataError(f"{root} holds {found}/ but no {lacking}/; a test needs both")
    train, query, gallery = (read_folder(root / split, _FOLDER, "<identity>_c<camera>_<anything>") for split in _SPLITS)
    return Splits(train, query, gallery)


def csv_table(file: Path) -> Splits:
    """Read a table with the columns path, identity, camera and split; others are ignored.

    Identities and cameras may be any text: they are numbered in sorted order. An empty camera, and -1 for either, is
    an unknown one. Raises DataError with all faulty rows.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or ()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {error}; expected a comma-separated table in UTF-8") from None
    if missing := [name for name in ("path", "identity", "split") if name not in columns]:
        raise DataError(f"{file}: the column {missing[0]} is missing; found {', '.join(columns) or 'none'}")
    faults = []
    for line, row in rows:
        if row["split"] not in _SPLITS:
            faults.append(f"{file}:{line}: split: found '{row['split'] or ''}'; expected train, query or gallery")
        if not row["path"] or not row["identity"]:
            faults.append(f"{file}:{line}: {'identity' if row['path'] else 'path'} is empty")
    if faults:
        raise DataError(first_of(faults))
    identities = numbers([row["identity"] for _, row in rows])
    cameras = numbers([row.get("camera") or "" for _, row in rows])
    parts: dict[str, list[Sample]] = {split: [] for split in _SPLITS}
    for _, row in rows:
        sample = Sample(file.parent / row["path"], identities[row["identity"]], cameras[row.get("camera") or ""])
        parts[row["split"]].append(sample)
    train, query, gallery = (tuple(parts[split]) for split in _SPLITS)
    return Splits(train, query, gallery)


def lfw(root: Path, pairs: Path) -> Splits:
    """Read a list of pairs; queries are their first images, the gallery their second ones, in the order of the list.

    Of view 2 that is ten parts of 300 pairs of the same and 300 of different people. The line that counts these is
    optional. Raises DataError with all faulty lines.
    """
    require_folder(root, "a folder for each person")
    try:
        lines = [(number, line.split()) for number, line in enumerate(pairs.read_text("utf-8").splitlines(), start=1)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {pairs}: {getattr(error, 'strerror', None) or error}") from None
    first: list[tuple[str, Path]] = []
    second: list[tuple[str, Path]] = []
    faults = []
    for number, words in lines:
        if not words or (number == 1 and len(words) < 3):
            continue
        names = words[::2] if len(words) == 4 else [words[0]] * 2
        images = [words[1], words[-1]] if len(words) in (3, 4) else []
        if not images or not all(re.fullmatch(r"\d{1,9}", image) for image in images):
            expected = "'<name> <number> <number>' or '<name> <number> <name> <number>'"
            faults.append(f"{pairs}:{number}: found '{' '.join(words)}'; expected {expected}")
            continue
        for side, name, image in zip((first, second), names, images, strict=True):
            side.append((name, root / name / f"{name}_{int(image):04d}.jpg"))
    if faults:
        raise DataError(first_of(faults))
    identities = {name: number for number, name in enumerate(sorted({name for name, _ in (*first, *second)}))}
    query, gallery = (tuple(Sample(file, identities[name]) for name, file in side) for side in (first, second))
    return Splits(query=query, gallery=gallery)


def find_images(places: Sequence[Path]) -> list[Path]:
    """Return the files among `places`, and the images in the folders among them and below; each once.

    Raises DataError for a place that is not there, or holds no image.
    """
    known, found = _suffixes(), dict[Path, None]()
    for place in places:
        if place.is_file():
            found[place] = None
            continue
        if not place.is_dir():
            raise DataError(f"there is no image or folder {place}")
        hidden = len(place.parts)
        files = [
            file
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in known
            and not any(part.startswith(".") for part in file.parts[hidden:])
            and file.is_file()
        ]
        if not files:
            raise DataError(f"the folder {place} holds no images, nor do the folders in it")
        found.update(dict.fromkeys(files))
    return list(found)


def label_by_name(files: Sequence[Path]) -> tuple[list[Sample], str]:
    """Return samples with the identities and cameras that the files' names say, and a sentence about them.

    They are unknown unless all names have the form `<identity>_c<camera>_<anything>.<ext>`.
    """
    matches = [_FOLDER.fullmatch(file.stem) for file in files]
    others = [file for file, match in zip(files, matches, strict=True) if match is None]
    if others:
        return [Sample(file) for file in files], (
            f"identities and cameras are unknown: {len(others)} of {len(files)} names do not have the form "
            f"<identity>_c<camera>_<anything>, the first is {others[0]}"
        )
    samples = [Sample(file, int(m[1]), int(m[2])) for file, m in zip(files, matches, strict=True) if m]
    return samples, "identities and cameras are those of the file names"


def numbers(texts: Sequence[str]) -> dict[str, int]:
    """Number the texts in order, whole numbers by their value unless two are written differently."""
    unknown = {"": UNKNOWN, str(UNKNOWN): UNKNOWN}
    distinct = set(texts) - set(unknown)
    if all(re.fullmatch(r"\d{1,18}", text) for text in distinct):
        numbers = {text: int(text) for text in distinct}
        if len(set(numbers.values())) == len(distinct):
            return numbers | unknown
    return {text: number for number, text in enumerate(sorted(distinct))} | unknown


def _suffixes() -> set[str]:
    return {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}


class MissingData(DataError):
    """A data set that is not where it is said to be."""


def require_folder(path: Path, layout: str) -> None:
    """Raise MissingData, which says what should lie there, unless there is a folder `path`."""
    if not path.is_dir():
        where = "" if path.is_absolute() else f" (in {Path.cwd()})"
        raise MissingData(f"there is no folder {path}{where}; expected {layout}")


def read_folder(path: Path, pattern: re.Pattern[str], form: str) -> tuple[Sample, ...]:
    """Return the images of a folder, whose names have the form of the pattern: identity, then camera.

    Raises DataError with the names that have not.
    """
    if not path.is_dir():
        return ()
    known = _suffixes()
    samples, faults = [], []
    for name in sorted(os.listdir(path)):  # names, since paths are compared and taken apart ten times as slowly
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in known or name.startswith("."):
            continue
        match = pattern.fullmatch(stem)
        if match is None:
            faults.append(name)
        else:
            samples.append(Sample(path / name, int(match[1]), int(match[2])))
    if not samples and not faults and (folders := [entry for entry in path.iterdir() if entry.is_dir()]):
        found = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
        raise DataError(
            f"{path} holds {found} but no images; put the images into it with names of the form {form}, or list "
            "them in a table for the data set 'csv'"
        )
    if faults:
        raise DataError(
            f"{path}: the names of {len(faults)} images do not have the form {form}: {', '.join(faults[:3])}"
            f"{' …' if len(faults) > 3 else ''}; rename them, or list the images in a table for the data set 'csv'"
        )
    return tuple(samples)
