"""Exporters of the core: files for other engines (paper, section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.export.caffe import CaffeArtifact, CaffeExporter
    from reidcore.export.onnx import OnnxArtifact, OnnxExporter
    from reidcore.export.openvino import OpenVinoArtifact, OpenVinoExporter


@frozen(kw_only=True)
class _Graph:
    precision: Literal["float32", "float16", "int8"] = option(
        "float32", help="of weights and arithmetic; the ranges of 'int8' are measured on training images"
    )
    unit_length: bool = option(False, help="scale the embeddings to length 1")


@frozen(kw_only=True)
class Onnx(_Graph):
    """An ONNX file, for ONNX Runtime and most other engines."""

    suffixes: ClassVar = (".onnx",)

    input: Literal["pixels", "normalized"] = option(
        "pixels",
        help="what the file takes: 'pixels' are uint8 RGB images, which it normalises; else (B, 3, H, W) float32 that "
        "are less the mean and over the standard deviation",
    )
    opset: int = option(18, help="version of ONNX's operations", at_least=18, at_most=23)

    def build(self) -> OnnxExporter:
        from reidcore.export.onnx import OnnxExporter

        return OnnxExporter(self.precision, self.unit_length, self.input == "pixels", self.opset)

    @staticmethod
    def open(file: Path, device: str) -> OnnxArtifact:
        from reidcore.export.onnx import OnnxArtifact

        return OnnxArtifact(file, device)


@frozen(kw_only=True)
class Caffe:
    """Caffe's .prototxt and .caffemodel, in layers that every reader of Caffe's files has."""

    suffixes: ClassVar = (".prototxt",)

    def build(self) -> CaffeExporter:
        from reidcore.export.caffe import CaffeExporter, find_opencv

        find_opencv()
        return CaffeExporter()

    @staticmethod
    def open(file: Path, device: str) -> CaffeArtifact:
        from reidcore.export.caffe import CaffeArtifact

        return CaffeArtifact(file)


@frozen(kw_only=True)
class OpenVino(_Graph):
    """OpenVINO's .xml and .bin, for Intel's processors and other CPUs."""

    suffixes: ClassVar = (".xml",)

    def build(self) -> OpenVinoExporter:
        from reidcore.export.openvino import OpenVinoExporter, find_openvino

        find_openvino()
        return OpenVinoExporter(self.precision, self.unit_length)

    @staticmethod
    def open(file: Path, device: str) -> OpenVinoArtifact:
        from reidcore.export.openvino import OpenVinoArtifact

        return OpenVinoArtifact(file)


@hookimpl
def reidcore_exporters() -> Iterator[Component]:
    """Offer ONNX, Caffe and OpenVINO."""
    yield Component(name="onnx", config=Onnx)
    yield Component(name="caffe", config=Caffe)
    yield Component(name="openvino", config=OpenVino)
