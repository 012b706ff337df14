"""ONNX files, and running them by ONNX Runtime. B batch, H W image, D embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from reidcore.errors import RunError
from reidcore.export.graph import describe, quantize, to_float16, trace
from reidcore.export.proof import About

Precision = Literal["float32", "float16", "int8"]

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-3, "int8": 0.05}
"""Largest accepted 1 - cosine by precision."""


def stem(precision: Precision, unit_length: bool = False, fold: bool = True) -> str:
    """Return the name of a file without its end, so that those of several options can lie in one folder."""
    parts = {precision: precision != "float32", "normalized": not fold, "unit": unit_length}
    return "-".join(["model", *(part for part, told in parts.items() if told)])


def normalized(images: NDArray[Any], about: About) -> NDArray[np.float32]:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, as the model normalises."""
    mean, std = (np.array(values, np.float32) * 255 for values in (about.mean, about.std))
    return np.ascontiguousarray(((images.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))


@frozen
class OnnxExporter:
    """Writes `model.onnx`, or `model-int8.onnx` and the like. See `reidcore.export.graph.trace` for the options."""

    precision: Precision = "float32"
    unit_length: bool = False
    fold: bool = True
    opset: int = 18

    @property
    def tolerance(self) -> float:
        """Largest accepted 1 - cosine between the artifact's embeddings and the model's."""
        return TOLERANCES[self.precision]

    def export(self, model: Any, images: NDArray[Any], folder: Path, about: About) -> OnnxArtifact:
        """Write `model` into `folder`; with "int8" all `images` (N, H, W, 3) uint8 are calibrated with."""
        file = folder / f"{stem(self.precision, self.unit_length, self.fold)}.onnx"
        onnx.save(self.graph(model, images, about), file)
        return OnnxArtifact(file)

    def graph(self, model: Any, images: NDArray[Any], about: About, symmetric: bool = False) -> onnx.ModelProto:
        """Return what is written; `symmetric` 8-bit numbers have no zero point."""
        about = evolve(about, precision=self.precision, unit_length=self.unit_length)
        graph = trace(model, about, fold=self.fold, unit_length=self.unit_length, opset=self.opset)
        if self.precision == "float16":
            graph = to_float16(graph)
        if self.precision == "int8":
            graph = quantize(graph, images if self.fold else normalized(images, about), symmetric=symmetric)
        return describe(graph, about)


@frozen(eq=False)
class OnnxArtifact:
    """An ONNX file, run on the CPU or, where ONNX Runtime can, on the GPU.

    about: what the file says of itself, None where reidcore did not write it.
    """

    file: Path
    device: str = "cpu"
    session: Any = field(init=False)
    about: About | None = field(init=False)

    @session.default
    def _open(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        offered = onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if self.device.startswith("cuda") else []
        providers = [name for name in wanted if name in offered] + ["CPUExecutionProvider"]
        try:
            return onnxruntime.InferenceSession(self.file, options, providers=providers)
        except Exception as error:  # its errors have no common class
            raise RunError(f"ONNX Runtime cannot read {self.file}: {str(error).splitlines()[0]}") from None

    @about.default
    def _read(self) -> About | None:
        return About.read(self.session.get_modelmeta().custom_metadata_map)

    @property
    def files(self) -> tuple[Path]:
        """The file."""
        return (self.file,)

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> `{"embedding": (B, D) float32, ...}`."""
        given = self.session.get_inputs()[0]
        if given.type != "tensor(uint8)":
            if self.about is None:
                raise RunError(f"{self.file} does not say how its images are normalised: reidcore did not write it")
            images = normalized(images, self.about)
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {given.name: images}), strict=True))
