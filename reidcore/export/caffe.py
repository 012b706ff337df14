"""Caffe's files, `.prototxt` and `.caffemodel`, and running them by OpenCV. B batch, H W image, D embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from attrs import field, frozen
from google.protobuf import text_format
from numpy.typing import NDArray

from reidcore.errors import RunError, os_message
from reidcore.export.caffe_schema import net_class
from reidcore.export.caffe_writer import DATA, write_net
from reidcore.export.graph import trace
from reidcore.export.proof import About

_OLD = re.compile(r"^\s*layers\s*[:{]", re.MULTILINE)
_HEAD = """\
# Input '{data}': RGB (not BGR) pixel values in 0..255, any number of images of {height}x{width}.
# Output 'embedding': {dim} numbers an image.
"""


def find_opencv() -> Any:
    """Return OpenCV's module for networks. Raises RunError where it is not there, or has no reader of Caffe's files."""
    try:
        dnn = import_module("cv2").dnn
    except ImportError:
        dnn = None
    if not hasattr(dnn, "readNetFromCaffe"):
        raise RunError(
            "Caffe's files are read by OpenCV 4, to prove that they compute the same, which is not installed; "
            'pip install "reidcore[caffe]"'
        )
    return dnn


@frozen
class CaffeExporter:
    """Writes `model.prototxt` and `model.caffemodel`, in float32."""

    tolerance = 1e-3

    def export(self, model: Any, images: NDArray[Any], folder: Path, about: About) -> CaffeArtifact:
        """Write `model` into `folder`. Raises ContractError, which names the layer that Caffe cannot express."""
        return self.write(trace(model, about), folder, about)

    def write(self, graph: onnx.ModelProto, folder: Path, about: About) -> CaffeArtifact:
        """Write the graph of a model."""
        net = write_net(graph)
        weights = folder / "model.caffemodel"
        weights.write_bytes(net.SerializeToString(deterministic=True))
        for layer in net.layer:
            del layer.blobs[:]
        head = _HEAD.format(data=DATA, height=about.height, width=about.width, dim=about.dim)
        notes = "".join(f"# {name}: {text}\n" for name, text in about.texts().items())
        file = weights.with_suffix(".prototxt")
        file.write_text(head + notes + text_format.MessageToString(net), encoding="utf-8")
        return CaffeArtifact(file)


def read_prototxt(file: Path) -> Any:
    """Return the network that a file describes. Raises RunError for one that is not Caffe's."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise RunError(os_message(error, "read", file)) from None
    if _OLD.search(text):
        raise RunError(
            f"{file} is written as Caffe did in 2014 ('layers'); convert it by Caffe's upgrade_net_proto_text first"
        )
    net = net_class()()
    try:
        text_format.Parse(text, net)
    except text_format.ParseError as error:
        raise RunError(f"{file}:{error.GetLine()}: {error}; expected a network of Caffe for inference") from None
    return net


def outputs_of(net: Any) -> dict[str, str]:
    """Return the blobs that no later layer reads, in the order of their layers, each with its layer's name."""
    unread: dict[str, str] = {}
    for layer in net.layer:
        for blob in layer.bottom:
            unread.pop(blob, None)
        if layer.type != "Input":
            unread |= dict.fromkeys(layer.top, layer.name)
    return unread


def read_notes(prototxt: str) -> dict[str, str]:
    """Return what the comments of a file say as `# name: text`."""
    lines = (line[1:].strip().partition(": ") for line in prototxt.splitlines() if line.startswith("#"))
    return {name: text for name, separator, text in lines if separator}


@frozen(eq=False)
class CaffeArtifact:
    """A `.prototxt` and the `.caffemodel` beside it, run by OpenCV on the CPU."""

    file: Path
    net: Any = field(init=False)
    about: About | None = field(init=False)
    outputs: Mapping[str, str] = field(init=False)

    @net.default
    def _open(self) -> Any:
        dnn = find_opencv()
        for file in self.files:
            if not file.is_file():
                raise RunError(f"there is no file {file}; a Caffe model is a .prototxt and a .caffemodel beside it")
        try:
            return dnn.readNetFromCaffe(*map(str, self.files))
        except Exception as error:  # cv2.error
            raise RunError(f"OpenCV cannot read {self.file}: {str(error).strip()}") from None

    @about.default
    def _read(self) -> About | None:
        return About.read(read_notes(self.file.read_text("utf-8")))

    @outputs.default
    def _find(self) -> Mapping[str, str]:
        return outputs_of(read_prototxt(self.file))

    @property
    def files(self) -> tuple[Path, Path]:
        """The network and its weights."""
        return self.file, self.file.with_suffix(".caffemodel")

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> `{"embedding": (B, D) float32, ...}`."""
        known = self.net.getLayerNames()  # OpenCV calls some layers after their blob
        layers = [blob if blob in known else layer for blob, layer in self.outputs.items()]
        try:
            self.net.setInput(np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32))
            return dict(zip(self.outputs, self.net.forward(layers), strict=True))
        except Exception as error:  # cv2.error
            raise RunError(f"OpenCV cannot run {self.file}: {str(error).strip()}") from None
