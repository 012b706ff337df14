"""Embedding files: what `reidcore embed` writes and `reidcore index` reads.

One safetensors file: `identities` and `cameras` (N,) int64, `path_ends` (N,) int64 into the UTF-8 bytes `paths`, and
last `embeddings` (N, D) float32, so that they are written as they come and read by mapping the file. Its metadata
hold the format's version, the fingerprint of the model, and the distance that the embeddings are compared with.

N images, D dimension of the embedding.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from reidcore.errors import ReidError, os_message
from reidcore.retrieval.problem import DISTANCES, as_arrays, check_values
from reidcore.retrieval.protocol import check_name
from reidcore.types import Features

FORMAT = "reidcore-embeddings-1"
BLOCK_BYTES = 2**26

_TYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
LABELS = {"identities": "I64", "cameras": "I64", "path_ends": "I64", "paths": "U8"}
"""The arrays that stand for labels, with the names that safetensors gives to types."""


class Paths(Sequence[str]):
    """N texts as one array of UTF-8 bytes and the (N,) ends of each: millions of them need no objects."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, texts: Iterable[Any]) -> Paths:
        """Return the texts of anything that has a text; those that are such a table already, as they are."""
        if isinstance(texts, Paths):
            return texts
        encoded = [str(text).encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @classmethod
    def join(cls, tables: Sequence[Paths]) -> Paths:
        """Return the texts of all tables, in order."""
        texts = [table.text[: table.ends[-1]] for table in tables]
        starts = np.cumsum([0, *(len(text) for text in texts)])
        ends = [table.ends + start for table, start in zip(tables, starts, strict=False)]
        return cls(np.concatenate(texts), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        start = self.ends[number - 1] if number else 0
        return self.text[start : self.ends[number]].tobytes().decode("utf-8", "surrogateescape")


@frozen(eq=False)
class Embeddings:
    """An embedding file: its features, whose embeddings stay on the disk until they are used; and where they are from.

    fingerprint: of the model; distance: "cosine" or "euclidean".
    """

    file: Path
    features: Features
    fingerprint: str
    distance: str

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        """The embedding's dimension, D."""
        return int(self.features.embeddings.shape[1])


def read_embeddings(file: str | Path) -> Embeddings:
    """Open an embedding file. Raises ReidError when it is none, or is damaged."""
    file = Path(file)
    arrays, metadata = read_arrays(file, {**LABELS, "embeddings": "F32"}, "an embedding file", FORMAT)
    if missing := {"fingerprint", "distance"} - metadata.keys():
        raise ReidError(f"{file} is not an embedding file: it lacks '{min(missing)}'")
    check_name("distance", metadata["distance"], DISTANCES)
    features = Features(
        arrays["embeddings"], arrays["identities"], arrays["cameras"], Paths(arrays["paths"], arrays["path_ends"])
    )
    return Embeddings(file, features, metadata["fingerprint"], metadata["distance"])


def write_embeddings(file: str | Path, features: Features, *, fingerprint: str, distance: str = "cosine") -> None:
    """Write features, which must have paths, for `reidcore index`.

    fingerprint: any text that is another one for another model. Raises ReidError for a file that exists, and for
    features that are unsound: lengths that differ, wrong types, embeddings that are not finite or all zeros.
    """
    features = as_arrays(features, "given")
    if features.paths is None:
        raise ReidError("the features have no paths; an index names what it finds by them")
    dim = features.embeddings.shape[1]
    writer = EmbeddingWriter(
        file, features.identities, features.cameras, features.paths, dim, fingerprint=fingerprint, distance=distance
    )
    with writer:
        for rows in blocks(len(features), dim):
            writer.add(np.asarray(features.embeddings[rows], np.float32))


class EmbeddingWriter:
    """Writes an embedding file as the embeddings come; a context manager. The file appears when it is complete.

    identities, cameras: (N,) integers; paths: N texts; dim: D. Raises ReidError for a file that exists.
    """

    def __init__(
        self,
        file: str | Path,
        identities: Any,
        cameras: Any,
        paths: Sequence[Any],
        dim: int,
        *,
        fingerprint: str,
        distance: str = "cosine",
    ) -> None:
        check_name("distance", distance, DISTANCES)
        self.file, self.dim, self.written = Path(file), dim, 0
        refuse_existing(self.file)
        self.paths = Paths.of(paths)
        self.labels = pack_labels(identities, cameras, self.paths)
        for name in ("identities", "cameras"):
            if len(self.labels[name]) != len(self.paths):
                raise ReidError(
                    f"{file}: found {len(self.labels[name])} {name} for {len(self.paths)} paths; expected one each"
                )
        self.metadata = {"format": FORMAT, "fingerprint": fingerprint, "distance": distance}
        self.partial = self.file.with_name(f".{self.file.name}.partial")

    def __enter__(self) -> Self:
        shapes = {name: (array.shape, array.dtype) for name, array in self.labels.items()}
        text, _ = header({**shapes, "embeddings": ((len(self.paths), self.dim), np.dtype("<f4"))}, self.metadata)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = self.partial.open("wb")
        except OSError as error:
            raise ReidError(os_message(error, "write", self.file)) from None
        self._write(text, *(array.data for array in self.labels.values()))
        return self

    def add(self, embeddings: NDArray[np.float32]) -> None:
        """Write the next (n, D) embeddings. Raises ReidError for one that is not finite or all zeros."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ReidError(f"{self.file}: found embeddings of shape {embeddings.shape}; expected (n, {self.dim})")
        check_values(embeddings, str(self.file), self.paths, self.written)
        self.written += len(embeddings)
        self._write(np.ascontiguousarray(embeddings, "<f4").data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.written != len(self.paths):
                    raise ReidError(f"{self.file}: {self.written} embeddings came; expected {len(self.paths)}")
                self._finish()
        finally:
            self.stream.close()
            self.partial.unlink(missing_ok=True)

    def _write(self, *parts: Any) -> None:
        try:
            for part in parts:
                self.stream.write(part)
        except OSError as error:
            raise ReidError(os_message(error, "write", self.file)) from None

    def _finish(self) -> None:
        try:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            self.partial.replace(self.file)
        except OSError as error:
            raise ReidError(os_message(error, "write", self.file)) from None


def header(
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Return what a safetensors file of arrays begins with, and where in the rest of it each begins and the last ends.

    arrays: `{name: (shape, type)}`.
    """
    kinds = {dtype: kind for kind, dtype in _TYPES.items()}
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    places = [0]
    for name, (shape, dtype) in arrays.items():
        places.append(places[-1] + math.prod(shape) * dtype.itemsize)
        table[name] = {"dtype": kinds[dtype], "shape": shape, "data_offsets": places[-2:]}
    text = json.dumps(table).encode()
    text += b" " * (-(len(text) + 8) % 64)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text, places


def refuse_existing(file: Path) -> None:
    """Raise ReidError for a file that exists."""
    if file.exists():
        raise ReidError(f"{file} exists; choose another name, or remove it")


def pack_labels(identities: Any, cameras: Any, paths: Paths) -> dict[str, NDArray[Any]]:
    """Return the arrays that stand for the labels in a file; the paths are padded, so that what follows is aligned."""
    padding = np.zeros(-(24 * len(paths) + len(paths.text)) % 64, np.uint8)
    return {
        "identities": np.ascontiguousarray(identities, "<i8"),
        "cameras": np.ascontiguousarray(cameras, "<i8"),
        "path_ends": np.ascontiguousarray(paths.ends, "<i8"),
        "paths": np.concatenate([paths.text, padding]),
    }


def read_arrays(
    file: Path, types: dict[str, str], what: str, version: str
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Map the arrays of a safetensors file of N rows, and read its metadata.

    types: `{name: type of the format}`; what: what the file should be. Raises ReidError when it is not that.
    """
    try:
        with safe_open(file, "numpy") as stream:  # which checks that offsets, sizes and the file's length agree
            metadata = stream.metadata() or {}
        raw = np.memmap(file, np.uint8, "r")
    except FileNotFoundError:
        raise ReidError(f"there is no file {file}; expected {what}") from None
    except (OSError, SafetensorError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReidError(f"{file} is not {what}, or is damaged: {reason}") from None
    if metadata.get("format") != version:
        found = f"the format '{metadata['format']}'" if "format" in metadata else "another kind of file"
        raise ReidError(f"{file} is not {what}: found {found}; expected '{version}'")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    arrays = {}
    for name, kind in types.items():
        if name not in header or header[name]["dtype"] != kind:
            raise ReidError(f"{file} is not {what}: it lacks '{name}' of type {kind}")
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        arrays[name] = raw[begin:end].view(_TYPES[kind]).reshape(header[name]["shape"])
    shapes = {name: array.shape for name, array in arrays.items()}
    fit = all(len(shape) == (2 if name == "embeddings" else 1) for name, shape in shapes.items())
    ends = arrays["path_ends"]
    if (
        not fit
        or len({shape[0] for name, shape in shapes.items() if name != "paths"}) > 1
        or not all(shapes["path_ends"] + shapes.get("embeddings", ()))
        or not 0 <= ends[0] <= ends[-1] <= len(arrays["paths"])
        or (np.diff(ends) < 0).any()
    ):
        raise ReidError(f"{file} is not {what}: its arrays do not fit each other, with the shapes {shapes}")
    return arrays, metadata


def blocks(count: int, dim: int) -> Iterator[slice]:
    """Yield slices of rows that are together `count`, each of a bounded size in memory."""
    height = max(1, BLOCK_BYTES // (4 * dim))
    for start in range(0, count, height):
        yield slice(start, min(start + height, count))
