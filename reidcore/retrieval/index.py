"""An index: a folder in which the nearest of many embeddings are found without comparing with all of them.

    index.json           what it is, and which of the files below belong to it; replaced last, so that the folder is at
                         every moment its old or its new self
    vectors-*.faiss      the embeddings as FAISS (Douze et al., The Faiss library, 2024) keeps them
    labels-*.safetensors identities, cameras and paths

Kinds: `flat` compares with all; `hnsw` walks a graph; `ivf-sq` looks into the nearest of many lists, of vectors in
16 bits a number; `ivf-pq` looks into lists of product-quantised vectors, 2 bits a number, and ranks the best again by
vectors in 16 bits a number that stay on the disk.
Embeddings compared by cosine are normalised, so that FAISS always finds the smallest squared difference.

N vectors of dimension D, Q queries.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from attrs import asdict, evolve, frozen
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from reidcore.errors import ReidError, os_message
from reidcore.retrieval.problem import as_matrix, check_values
from reidcore.retrieval.store import (
    LABELS,
    Embeddings,
    Paths,
    blocks,
    pack_labels,
    read_arrays,
    read_embeddings,
)

KINDS = ("flat", "hnsw", "ivf-sq", "ivf-pq")
FLAT_UP_TO, SQ_UP_TO = 2**23, 2**27
"""N x D up to which an index of no stated kind compares with all (some 3 ms a query), and is `ivf-sq` (256 MiB)."""

RECALL = 0.98
FORMAT, LABELS_FORMAT = "reidcore-index-1", "reidcore-labels-1"

_FEWEST = 1000
_TRAIN = 50
_EFFORT = {"hnsw": "efSearch", "ivf-sq": "nprobe", "ivf-pq": "nprobe"}
_OTHERS = 500
_K = 10

Report = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is, and of how much (0 when that is not known)."""


def _silent(what: str, done: int, total: int) -> None: ...


@frozen
class Meta:
    """What index.json says.

    effort: how many lists (`nprobe`) or nodes (`efSearch`) a search looks at, 0 for `flat`; refine: how many times k
    `ivf-pq` ranks again in a search for k; recall: the share of the 10 nearest that is found so, measured when it was
    built, of `built` vectors.
    """

    format: str
    kind: str
    distance: str
    dimension: int
    count: int
    fingerprint: str
    effort: int
    refine: int
    recall: float
    built: int
    vectors: str
    labels: str


@frozen(eq=False)
class Index:
    """An index that is open. identities, cameras: (N,) int64; paths: N texts."""

    folder: Path
    meta: Meta
    identities: NDArray[np.int64]
    cameras: NDArray[np.int64]
    paths: Paths
    faiss: Any

    def __len__(self) -> int:
        return self.meta.count

    @classmethod
    def build(
        cls, files: Sequence[str | Path], folder: str | Path, kind: str | None = None, report: Report = _silent
    ) -> Index:
        """Make an index of embedding files in a new folder; `kind` is chosen by their size when it is not told.

        Raises ReidError for a folder that exists, files that do not belong together, and unsound embeddings.
        """
        folder = Path(folder)
        if (folder / "index.json").exists():
            raise ReidError(f"the index {folder} exists; add to it (--append), choose another name, or remove it")
        if folder.exists() and (not folder.is_dir() or any(not _ours(entry.name) for entry in folder.iterdir())):
            raise ReidError(f"{folder} exists and is not an index; choose another name")
        parts = [read_embeddings(file) for file in files]
        first = parts[0]
        for part in parts[1:]:
            _check_same(part, first.fingerprint, first.distance, first.dim, str(first.file))
        count = sum(len(part) for part in parts)
        kind = kind or _choose(first.dim, count)
        if kind.startswith("ivf") and count < _FEWEST:
            raise ReidError(
                f"an index of kind {kind} needs at least {_FEWEST} vectors, found {count}; leave the kind out"
            )
        _check(parts, report)
        searcher = _make(kind, first.dim, count)
        if not searcher.is_trained:
            report("training", 0, 0)
            chosen = np.sort(np.random.default_rng(0).choice(count, min(count, _TRAIN * _lists(count)), replace=False))
            searcher.train(_gather(parts, chosen))
        _add(searcher, parts, count, report)
        effort, refine, recall = _tune(searcher, kind, parts, count, report)
        meta = Meta(
            format=FORMAT,
            kind=kind,
            distance=first.distance,
            dimension=first.dim,
            count=count,
            fingerprint=first.fingerprint,
            effort=effort,
            refine=refine,
            recall=recall,
            built=count,
            vectors="",
            labels="",
        )
        return _save(folder, meta, searcher, parts, None)

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open an index. Raises ReidError when it is none, or is damaged."""
        folder = Path(folder)
        meta = _read_meta(folder)
        try:
            searcher = _read(folder / meta.vectors, mapped=True)
            arrays, _ = read_arrays(folder / meta.labels, LABELS, "the labels of an index", LABELS_FORMAT)
        except ReidError:
            if _read_meta(folder) == meta:
                raise
            return cls.open(folder)  # it was replaced meanwhile
        if not (searcher.ntotal == len(arrays["identities"]) == meta.count and searcher.d == meta.dimension):
            raise ReidError(
                f"{folder} is damaged: index.json tells of {meta.count} vectors of {meta.dimension} dimensions, "
                f"there are {searcher.ntotal} of {searcher.d} with {len(arrays['identities'])} labels"
            )
        _set_effort(searcher, meta.kind, meta.effort, meta.refine)
        paths = Paths(arrays["paths"], arrays["path_ends"])
        return cls(folder, meta, arrays["identities"], arrays["cameras"], paths, searcher)

    def append(self, files: Sequence[str | Path], report: Report = _silent) -> Index:
        """Add embedding files to the folder, and return the index with them.

        Raises ReidError for embeddings of another model, dimension or distance, and for unsound ones.
        """
        parts = [read_embeddings(file) for file in files]
        for part in parts:
            _check_same(part, self.meta.fingerprint, self.meta.distance, self.meta.dimension, str(self.folder))
        _check(parts, report)
        count = sum(len(part) for part in parts)
        self.require_unchanged()
        searcher = _read(self.folder / self.meta.vectors, mapped=False)
        _set_effort(searcher, self.meta.kind, self.meta.effort, self.meta.refine)
        _add(searcher, parts, count, report)
        return _save(self.folder, evolve(self.meta, count=self.meta.count + count), searcher, parts, self)

    def search(self, embeddings: Any, k: int = 10) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows of the `k` nearest of each of (Q, D) embeddings, nearest first, and their distances: (Q, k).

        Distances are approximate where vectors are quantised. A `k` beyond N means N. Where fewer are found, which
        only a graph of many equal vectors does, rows are -1 and distances infinite.
        Raises ReidError for another dimension, and for embeddings that are not finite or all zeros.
        """
        queries = as_matrix(embeddings, "query")
        if queries.shape[1] != self.meta.dimension:
            raise ReidError(
                f"the query embeddings have shape {queries.shape}; "
                f"the index {self.folder} takes (Q, {self.meta.dimension})"
            )
        if k < 1:
            raise ReidError(f"k is {k}; expected at least 1")
        check_values(queries, "query")
        queries, k, meta = (
            _prepare(queries.astype(np.float32, copy=False), self.meta.distance),
            min(k, len(self)),
            self.meta,
        )
        squared, rows = self.faiss.search(queries, k)
        effort = meta.effort
        while meta.kind in _EFFORT and (rows < 0).any() and effort < len(self):  # a large k, or small lists
            effort *= 2
            _set_effort(self.faiss, meta.kind, effort, meta.refine)
            squared, rows = self.faiss.search(queries, k)
        _set_effort(self.faiss, meta.kind, meta.effort, meta.refine)
        distances = squared.clip(0) / 2 if meta.distance == "cosine" else np.sqrt(squared.clip(0))
        return rows, np.where(rows < 0, np.float32(np.inf), distances)

    def require_model(self, fingerprint: str, name: str) -> None:
        """Raise ReidError unless the index is of embeddings of the model with this fingerprint."""
        if fingerprint != self.meta.fingerprint:
            raise ReidError(
                f"the embeddings in {self.folder} are of another model than {name} (fingerprints "
                f"{self.meta.fingerprint[:12]} and {fingerprint[:12]}); search with the run that they were made with"
            )

    def require_unchanged(self) -> None:
        """Raise ReidError if the folder holds another index since this one was opened."""
        if _read_meta(self.folder) != self.meta:
            raise ReidError(f"the index {self.folder} was changed meanwhile; nothing was added, run the command again")

    def describe(self) -> str:
        """Return in a sentence what the index is, and how well it finds."""
        meta = self.meta
        text = f"{meta.count} vectors of {meta.dimension} dimensions, {meta.kind}"
        if meta.kind not in _EFFORT:
            return f"{text}: exact"
        text += f", {_EFFORT[meta.kind]} {meta.effort}: recall@{_K} {meta.recall:.3f}"
        if meta.recall < RECALL:
            text += f", which is less than the {RECALL} aimed at: another kind keeps more of the vectors"
        if meta.count > meta.built:
            text += f" when it was built of {meta.built}"
            if meta.count > 4 * meta.built:
                text += "; it has grown so much that building it anew makes it faster and better"
        return text


def _faiss() -> Any:
    import faiss  # here, since it is slow to import

    return faiss


def _read(file: Path, mapped: bool) -> Any:
    """Return the FAISS index in a file; `mapped` leaves on the disk what can stay there, and cannot be added to."""
    try:
        return _faiss().read_index(str(file), _faiss().IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise ReidError(f"cannot read {file}: {_reason(error)}") from None


def _choose(dim: int, count: int) -> str:
    if count < _FEWEST or count * dim <= FLAT_UP_TO:
        return "flat"
    return "ivf-sq" if count * dim <= SQ_UP_TO else "ivf-pq"


def _lists(count: int) -> int:
    """Return the number of lists for so many vectors: about 2√N, a power of two, each with 39 to learn from."""
    return max(1, min(1 << round(math.log2(2 * math.sqrt(count))), count // 39))


def _make(kind: str, dim: int, count: int) -> Any:
    """Return an empty FAISS index."""
    lists = f"IVF{_lists(count)}"
    even = dim + dim % 2
    padded = f"Pad{even}," if even != dim else ""
    description = {
        "flat": "Flat",
        "hnsw": "HNSW32",
        "ivf-sq": f"{lists},SQfp16",
        "ivf-pq": f"{padded}{lists},PQ{even // 2}x4fs,Refine(SQfp16)",  # two numbers together in 4 bits
    }[kind]
    return _faiss().index_factory(dim, description)


def _set_effort(searcher: Any, kind: str, effort: int, refine: int) -> None:
    if kind in _EFFORT:
        _faiss().ParameterSpace().set_index_parameter(searcher, _EFFORT[kind], effort)
    if kind == "ivf-pq":
        _faiss().ParameterSpace().set_index_parameter(searcher, "k_factor_rf", refine)


def _prepare(embeddings: NDArray[Any], distance: str) -> NDArray[np.float32]:
    """Return (n, D) embeddings as FAISS takes them: of length 1 if their lengths play no role."""
    block = np.ascontiguousarray(embeddings, np.float32)
    if distance == "euclidean":
        return block
    block = block / np.abs(block).max(axis=1, keepdims=True)  # squares of very small numbers are 0
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    return cast("NDArray[np.float32]", block)


def _check_same(part: Embeddings, fingerprint: str, distance: str, dim: int, where: str) -> None:
    """Raise ReidError unless a file can stand beside what is in `where`."""
    if part.dim != dim:
        raise ReidError(f"{part.file} holds embeddings of {part.dim} dimensions, {where} of {dim}")
    if part.distance != distance:
        raise ReidError(f"{part.file} is compared by {part.distance} distance, {where} by {distance}")
    if part.fingerprint != fingerprint:
        raise ReidError(
            f"{part.file} and {where} are of different models (fingerprints {part.fingerprint[:12]} and "
            f"{fingerprint[:12]}), whose embeddings have nothing in common; embed the images with one of them"
        )


def _check(parts: Sequence[Embeddings], report: Report) -> None:
    for part in parts:
        for rows in blocks(len(part), part.dim):
            check_values(part.features.embeddings[rows], str(part.file), part.features.paths, rows.start)
            report(f"checking {part.file.name}", rows.stop, len(part))


def _prepared(parts: Sequence[Embeddings]) -> Iterator[NDArray[np.float32]]:
    """Yield all embeddings in order, in blocks, as FAISS takes them."""
    for part in parts:
        for rows in blocks(len(part), part.dim):
            yield _prepare(part.features.embeddings[rows], part.distance)


def _gather(parts: Sequence[Embeddings], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the embeddings with these numbers, in the order of `rows`, as FAISS takes them."""
    found = np.empty((len(rows), parts[0].dim), np.float32)
    start = 0
    for part in parts:
        mine = (rows >= start) & (rows < start + len(part))
        found[mine] = part.features.embeddings[rows[mine] - start]
        start += len(part)
    return _prepare(found, parts[0].distance)


def _add(searcher: Any, parts: Sequence[Embeddings], count: int, report: Report) -> None:
    done = 0
    for block in _prepared(parts):
        searcher.add(block)
        done += len(block)
        report("indexing", done, count)


def _tune(searcher: Any, kind: str, parts: Sequence[Embeddings], count: int, report: Report) -> tuple[int, int, float]:
    """Return the least effort, of 1, 2, 3, 4, 6, 8, ..., that finds the share `RECALL` of the nearest; what is to be
    ranked again with it; and the share that is found.

    Measured on some of its own vectors, each of which is to find the nearest of the others; found is what is no
    further away than the last of the true nearest. If more effort does not help, it is the quantiser that loses them.
    """
    if kind not in _EFFORT or count == 1:
        return int(kind in _EFFORT), 0, 1.0
    chosen = np.sort(np.random.default_rng(1).choice(count, min(count, _OTHERS), replace=False))
    queries, k = _gather(parts, chosen), min(_K, count - 1)
    furthest = _nearest(parts, queries, k + 1, count, report)[:, -1]  # the first is the vector itself

    def measure(effort: int, refine: int) -> float:
        _set_effort(searcher, kind, effort, refine)
        _, rows = searcher.search(queries, k + 1)
        found = _gather(parts, rows.ravel().clip(0)).reshape(*rows.shape, -1)
        squared = np.square(found - queries[:, None], dtype=np.float64).sum(axis=2)
        hits = (squared <= furthest[:, None]) & (rows >= 0) & (rows != chosen[:, None])
        return float(np.minimum(hits.sum(axis=1), k).mean() / k)

    limit = count if kind == "hnsw" else _lists(count)
    efforts = sorted({*(2**n for n in range(40)), *(3 * 2**n for n in range(40))})
    before = 0.0
    for effort in (min(effort, limit) for effort in efforts if effort >= (16 if kind == "hnsw" else 1)):
        refine = max(8, effort)
        recall = measure(effort, refine)
        if recall >= RECALL or effort >= limit or (effort >= 64 and recall - before < 0.001):
            break
        before = recall
    while kind == "ivf-pq" and refine > 1 and (less := measure(effort, refine // 2)) >= min(recall, RECALL):
        refine, recall = refine // 2, less
    _set_effort(searcher, kind, effort, refine)
    return effort, refine, round(recall, 4)


def _nearest(
    parts: Sequence[Embeddings], queries: NDArray[np.float32], k: int, count: int, report: Report
) -> NDArray[np.float64]:
    """Return the (Q, k) squared distances to the nearest of all embeddings, ascending, by comparing with all."""
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    start = 0
    for block in _prepared(parts):
        squared, near = _faiss().knn(queries, block, min(k, len(block)))
        best, rows = np.hstack([best, squared]), np.hstack([rows, near + start])
        order = np.argsort(best, axis=1)[:, :k]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        start += len(block)
        report("measuring recall", start, count)
    found = _gather(parts, rows.ravel()).reshape(*rows.shape, -1)  # again, without the rounding of large products
    return np.sort(np.square(found - queries[:, None], dtype=np.float64).sum(axis=2), axis=1)


def _ours(name: str) -> bool:
    return name.startswith(("vectors-", "labels-"))


def _save(folder: Path, meta: Meta, searcher: Any, parts: Sequence[Embeddings], before: Index | None) -> Index:
    """Write new files beside those of `before`, then let index.json name the new ones."""
    labelled: list[Any] = [*([before] if before else []), *(part.features for part in parts)]
    identities, cameras = (
        np.concatenate([getattr(item, name) for item in labelled]) for name in ("identities", "cameras")
    )
    paths = Paths.join([item.paths for item in labelled])
    word = secrets.token_hex(4)
    meta = evolve(meta, vectors=f"vectors-{word}.faiss", labels=f"labels-{word}.safetensors")
    draft = folder / f"labels-{word}.json"
    written = [folder / meta.vectors, folder / meta.labels, draft]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _faiss().write_index(searcher, str(folder / meta.vectors))
        save_file(pack_labels(identities, cameras, paths), folder / meta.labels, {"format": LABELS_FORMAT})
        draft.write_text(json.dumps(asdict(meta), indent=2) + "\n", encoding="utf-8")
        for file in written:
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        if before:
            before.require_unchanged()
        draft.replace(folder / "index.json")
    except Exception as error:
        for file in written:
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ReidError(os_message(error, "write", folder)) from None
        if isinstance(error, (RuntimeError, SafetensorError)):  # the former is FAISS'
            raise ReidError(f"cannot write {folder}: {_reason(error)}") from None
        raise
    for entry in folder.iterdir():
        if _ours(entry.name) and entry.name not in (meta.vectors, meta.labels):
            with suppress(OSError):
                entry.unlink()
    return Index(folder, meta, identities, cameras, paths, searcher)


def _read_meta(folder: Path) -> Meta:
    file = folder / "index.json"
    try:
        table = json.loads(file.read_text("utf-8"))
        if table.get("format") != FORMAT:
            raise ReidError(f"{file}: found format {table.get('format')!r}; expected '{FORMAT}'")
        return Meta(**table)
    except FileNotFoundError:
        raise ReidError(f"{folder} is not an index: it has no index.json") from None
    except OSError as error:
        raise ReidError(os_message(error, "read", file)) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ReidError(f"{file} is damaged: {error}") from None


def _reason(error: Exception) -> str:
    """Return what FAISS says without where in its source it says it."""
    return str(error).split(": Error: ")[-1].splitlines()[-1].strip()
