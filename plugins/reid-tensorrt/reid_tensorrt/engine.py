"""Building engines from the ONNX graph, and running them. B batch, H W image, D embedding."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from reidcore.errors import ContractError, RunError, os_message
from reidcore.export import About
from reidcore.export.graph import IMAGES
from reidcore.export.onnx import TOLERANCES, OnnxExporter, Precision, stem


def has_gpu() -> bool:
    """Whether torch sees one."""
    return torch.cuda.is_available()


def find_tensorrt() -> Any:
    """Return the package. Raises RunError where it, or a GPU, is not there."""
    try:
        trt = import_module("tensorrt")
    except ImportError:
        raise RunError('TensorRT is not installed; pip install "reid-tensorrt[tensorrt]"') from None
    if not has_gpu():
        raise RunError(
            "TensorRT builds and runs engines on the GPU that they are for, and torch sees none here; the exporters "
            "'onnx' and 'openvino' write files for CPUs"
        )
    return trt


class Logger:
    """Keeps what TensorRT says, for the message of an error."""

    def __init__(self, trt: Any) -> None:
        said: list[str] = []

        class Kept(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    said.append(message)

        self.said, self.trt = said, Kept()

    def last(self) -> str:
        """Return the last error."""
        return self.said[-1].strip() if self.said else "it does not say why"


@frozen
class EngineExporter:
    """Writes `model.engine`, or `model-float16.engine` and `model-int8.engine`, and what it says of itself as JSON."""

    precision: Precision = "float16"
    batches: tuple[int, int, int] = (1, 32, 128)
    unit_length: bool = False
    workspace: float = 4.0
    effort: int = 3
    timing_cache: Path | None = None

    @property
    def tolerance(self) -> float:
        """Largest accepted 1 - cosine between the artifact's embeddings and the model's."""
        return TOLERANCES[self.precision]

    def export(self, model: Any, images: NDArray[Any], folder: Path, about: About) -> EngineArtifact:
        """Build an engine of `model` into `folder`; with "int8" all `images` (N, H, W, 3) uint8 are calibrated with.

        Raises ContractError with TensorRT's words where it cannot.
        """
        trt = find_tensorrt()
        device = next(model.parameters()).device
        about = evolve(about, precision=self.precision, unit_length=self.unit_length)
        graph = OnnxExporter(self.precision, self.unit_length).graph(model, images, about, symmetric=True)
        cast_first(graph)
        file = folder / f"{stem(self.precision, self.unit_length)}.engine"
        with torch.cuda.device(device if device.type == "cuda" else 0):
            file.write_bytes(self._build(trt, graph, about))
            built_for = {"tensorrt": trt.__version__, "gpu": torch.cuda.get_device_name()}
        notes = {**about.texts(), **{name: json.dumps(text) for name, text in built_for.items()}}
        file.with_suffix(".json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        return EngineArtifact(file, str(device) if device.type == "cuda" else "cuda")

    def _build(self, trt: Any, graph: onnx.ModelProto, about: About) -> bytes:
        logger = Logger(trt)
        builder = trt.Builder(logger.trt)
        # of versions that know networks of another kind it has to be asked for
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, logger.trt)
        if not parser.parse(graph.SerializeToString()):
            problems = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
            raise ContractError(f"TensorRT cannot read the model: {problems or logger.last()}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(self.workspace * 2**30))
        config.builder_optimization_level = self.effort
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
        profile = builder.create_optimization_profile()
        profile.set_shape(IMAGES, *((count, about.height, about.width, 3) for count in self.batches))
        config.add_optimization_profile(profile)
        gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name())
        file = self.timing_cache or cache_folder() / f"tensorrt-{trt.__version__}-{gpu}.timing"
        known = file.read_bytes() if file.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            # it is damaged, or of another kind of GPU
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ContractError(f"TensorRT cannot build an engine of the model: {logger.last()}")
        if (timed := config.get_timing_cache()) is not None:
            _keep(file, bytes(timed.serialize()))
        return bytes(plan)


def cache_folder() -> Path:
    """Return the user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reidcore"


def _keep(file: Path, data: bytes) -> None:
    """Write a file so that it is at every moment either its old self or complete."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(file)
    except OSError as error:
        raise RunError(os_message(error, "write", file)) from None


def cast_first(graph: onnx.ModelProto) -> None:
    """Have pixel values made floating-point numbers before anything else: TensorRT does no more with 8 bits."""
    nodes = graph.graph.node
    transpose = next(node for node in nodes if IMAGES in node.input)
    cast = next(node for node in nodes if transpose.output[0] in node.input)
    assert (transpose.op_type, cast.op_type) == ("Transpose", "Cast")
    pixels, result = transpose.output[0], cast.output[0]
    nodes.remove(transpose)
    nodes.remove(cast)
    cast.input[:], cast.output[:] = [IMAGES], [pixels]
    transpose.input[:], transpose.output[:] = [pixels], [result]
    nodes.insert(0, cast)
    nodes.insert(1, transpose)
    del graph.graph.value_info[:]  # which had other types
    onnx.checker.check_model(graph, full_check=True)


@frozen(eq=False)
class EngineArtifact:
    """An engine, run on the GPU. Opening it on another GPU, or with another version of TensorRT, is an error."""

    file: Path
    device: str = "cuda"
    about: About | None = field(init=False)
    engine: Any = field(init=False)
    context: Any = field(init=False)
    largest: int = field(init=False)

    @about.default
    def _read(self) -> About | None:
        notes = self.file.with_suffix(".json")
        texts: dict[str, str] = json.loads(notes.read_text("utf-8")) if notes.is_file() else {}
        trt, here = find_tensorrt(), torch.cuda.get_device_name(self._place())
        for name, now, what in (("tensorrt", trt.__version__, "TensorRT"), ("gpu", here, "the GPU")):
            if name in texts and (built := json.loads(texts[name])) != now:
                raise RunError(f"{self.file} was built for {what} {built}, and this is {now}; export it again here")
        return About.read(texts)

    @engine.default
    def _load(self) -> Any:
        trt = find_tensorrt()
        logger = Logger(trt)
        with torch.cuda.device(self._place()):
            engine = trt.Runtime(logger.trt).deserialize_cuda_engine(self.file.read_bytes())
        if engine is None:
            raise RunError(f"TensorRT cannot read {self.file}: {logger.last()}")
        return engine

    @context.default
    def _start(self) -> Any:
        with torch.cuda.device(self._place()):
            return self.engine.create_execution_context()

    @largest.default
    def _profile(self) -> int:
        return int(self.engine.get_tensor_profile_shape(IMAGES, 0)[2][0])

    @property
    def files(self) -> tuple[Path, Path]:
        """The engine, and what it says of itself."""
        return self.file, self.file.with_suffix(".json")

    def _place(self) -> torch.device:
        return torch.device(self.device if self.device.startswith("cuda") else "cuda")

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> `{"embedding": (B, D) float32, ...}`."""
        found = self.run_tensors(torch.from_numpy(np.ascontiguousarray(images)))
        return {name: values.numpy() for name, values in found.items()}

    def run_tensors(self, images: Tensor) -> Mapping[str, Tensor]:
        """(B, H, W, 3) uint8 -> `{"embedding": (B, D) float32, ...}`, where the images are.

        On the GPU it is queued on torch's current stream, and nothing passes through main memory. A batch that is
        larger than the engine's largest is cut, one that is smaller than its smallest is filled up.
        """
        place, images = images.device, images.to(self._place())
        smallest = int(self.engine.get_tensor_profile_shape(IMAGES, 0)[0][0])
        parts = []
        for part in images.split(self.largest):
            short = max(smallest - len(part), 0)
            found = self._run(torch.cat([part, part[-1:].expand(short, -1, -1, -1)]) if short else part)
            parts.append({name: values[: len(part)] for name, values in found.items()})
        return {name: torch.cat([part[name] for part in parts]).to(place) for name in parts[0]}

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        images = images.contiguous()
        self.context.set_input_shape(IMAGES, tuple(images.shape))
        self.context.set_tensor_address(IMAGES, images.data_ptr())
        found = {}
        for number in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(number)
            if name != IMAGES:
                shape = tuple(self.context.get_tensor_shape(name))
                found[name] = torch.empty(shape, dtype=torch.float32, device=images.device)
                self.context.set_tensor_address(name, found[name].data_ptr())
        # memory that torch frees is given away again on the same stream only, so nothing has to be waited for
        with torch.cuda.device(images.device):
            queued = self.context.execute_async_v3(torch.cuda.current_stream(images.device).cuda_stream)
        if not queued:
            raise RunError(f"TensorRT could not run {self.file} on {len(images)} images")
        return found
