"""TensorRT engines of reidcore's models (FastReID, section 6).

This module only describes the exporter: it imports nothing heavy, so that listing components stays fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import frozen

from reidcore import Component, hookimpl, option

if TYPE_CHECKING:
    from reid_tensorrt.engine import EngineArtifact, EngineExporter


@frozen(kw_only=True)
class TensorRT:
    """A TensorRT engine, for the kind of GPU that it is built on."""

    suffixes: ClassVar = (".engine",)

    precision: Literal["float32", "float16", "int8"] = option(
        "float16", help="of weights and arithmetic; the ranges of 'int8' are measured on training images"
    )
    batches: tuple[int, int, int] = option(
        (1, 32, 128), help="smallest, most usual and largest batch of the engine; larger ones are cut", at_least=1
    )
    unit_length: bool = option(False, help="scale the embeddings to length 1")
    workspace: float = option(4.0, help="GiB of GPU memory that kernels may use beside the weights", above=0)
    effort: int = option(3, help="how long to search for fast kernels", at_least=0, at_most=5)
    timing_cache: Path | None = option(
        None, help="file that remembers how fast kernels are; in the user's cache folder when absent"
    )

    def __attrs_post_init__(self) -> None:
        if list(self.batches) != sorted(self.batches):
            raise ValueError(f"found batches = {list(self.batches)}; expected numbers that do not fall")

    def build(self) -> EngineExporter:
        from reid_tensorrt.engine import EngineExporter, find_tensorrt

        find_tensorrt()
        return EngineExporter(
            self.precision, self.batches, self.unit_length, self.workspace, self.effort, self.timing_cache
        )

    @staticmethod
    def open(file: Path, device: str) -> EngineArtifact:
        from reid_tensorrt.engine import EngineArtifact

        return EngineArtifact(file, device)


@hookimpl
def reidcore_exporters() -> Iterator[Component]:
    """Offer engines."""
    yield Component(name="tensorrt", config=TensorRT)
