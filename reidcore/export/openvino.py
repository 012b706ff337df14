"""OpenVINO's files, and running them on the CPU. B batch, H W image, D embedding."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from reidcore.errors import RunError
from reidcore.export.onnx import TOLERANCES, OnnxExporter, Precision, stem
from reidcore.export.proof import About


def find_openvino() -> Any:
    """Return the package. Raises RunError where it is not there."""
    try:
        return import_module("openvino")
    except ImportError:
        raise RunError('OpenVINO is not installed; pip install "reidcore[openvino]"') from None


@frozen
class OpenVinoExporter:
    """Writes `model.xml` and `model.bin`, or `model-int8.xml` and the like, by way of the ONNX graph."""

    precision: Precision = "float32"
    unit_length: bool = False

    @property
    def tolerance(self) -> float:
        """Largest accepted 1 - cosine between the artifact's embeddings and the model's."""
        return TOLERANCES[self.precision]

    def export(self, model: Any, images: NDArray[Any], folder: Path, about: About) -> OpenVinoArtifact:
        """Write `model` into `folder`; with "int8" all `images` (N, H, W, 3) uint8 are calibrated with."""
        openvino = find_openvino()
        # it makes float16 of the weights itself, and reads explicit quantisation
        precision: Precision = "int8" if self.precision == "int8" else "float32"
        graph = OnnxExporter(precision, self.unit_length).graph(model, images, about)
        with TemporaryDirectory() as aside:
            onnx.save(graph, Path(aside) / "model.onnx")
            converted = openvino.convert_model(Path(aside) / "model.onnx")
        for output, value in zip(converted.outputs, graph.graph.output, strict=True):
            output.set_names({value.name})  # by which the compiled network knows it
        about = evolve(about, precision=self.precision, unit_length=self.unit_length)
        for name, text in about.texts().items():
            converted.set_rt_info(text, name.split("."))
        file = folder / f"{stem(self.precision, self.unit_length)}.xml"
        openvino.save_model(converted, file, compress_to_fp16=self.precision == "float16")
        return OpenVinoArtifact(file)


@frozen(eq=False)
class OpenVinoArtifact:
    """A pair of OpenVINO's files, run on the CPU: in float32 if that is what they hold, else as OpenVINO likes best."""

    file: Path
    model: Any = field(init=False)
    about: About | None = field(init=False)
    compiled: Any = field(init=False)

    @model.default
    def _open(self) -> Any:
        core = find_openvino().Core()
        try:
            return core.read_model(self.file)
        except RuntimeError as error:
            raise RunError(f"OpenVINO cannot read {self.file}: {str(error).strip().splitlines()[-1]}") from None

    @about.default
    def _read(self) -> About | None:
        names = [name.split(".") for name in About.names() if self.model.has_rt_info(name.split("."))]
        return About.read({".".join(name): self.model.get_rt_info(name).value for name in names})

    @compiled.default
    def _compile(self) -> Any:
        exact = self.about is None or self.about.precision == "float32"
        options = {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
        return find_openvino().Core().compile_model(self.model, "CPU", options)

    @property
    def files(self) -> tuple[Path, Path]:
        """The network and its weights."""
        return self.file, self.file.with_suffix(".bin")

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> `{"embedding": (B, D) float32, ...}`."""
        found = self.compiled({0: np.ascontiguousarray(images)})
        return {output.any_name: found[output] for output in self.compiled.outputs}
