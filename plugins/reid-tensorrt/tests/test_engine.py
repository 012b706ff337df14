"""Building and running engines, with a stand-in for TensorRT where there is no GPU.

The stand-in has the rules of TensorRT that the plugin has to keep: networks are strongly typed, 8-bit pixel values may
only be cast, rounding has no zero points, shapes are those of the profile, memory is passed as addresses. It computes
with ONNX Runtime.
"""

import ctypes
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from reid_tensorrt.engine import EngineArtifact, EngineExporter, cast_first
from reidcore.errors import ContractError, RunError
from reidcore.export import About, export
from reidcore.export.graph import trace
from reidcore.networks import build_model
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli, seem_trained, tiny_recipe

SIZE = (48, 32)


PLACE, MOVED = torch.device("cpu"), []
"""Where the engine would be, and the tensors that were brought there or back."""


def moved(self, *place, to=torch.Tensor.to, **options):
    if place == (PLACE,):
        MOVED.append(self.shape)
    return to(self, *place, **options)


class Network:
    def __init__(self, flags):
        assert flags == 1 << 1, "the network must be strongly typed"
        self.graph = None


class Parser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, number):
        return self.errors[number]

    def parse(self, data):
        graph = onnx.load_from_string(data)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
        for node in graph.graph.node:
            if "images" in node.input and node.op_type != "Cast":
                self.errors.append(f"{node.op_type} of UINT8")
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = constants[node.input[2]]
                if zero.any() or zero.dtype != np.int8:
                    self.errors.append(f"{node.op_type} with zero point {zero.dtype}")
        self.network.graph = data
        return not self.errors


class Profile:
    def set_shape(self, name, smallest, usual, largest):
        self.shapes = {name: (smallest, usual, largest)}


class Config:
    def __init__(self):
        self.limits, self.flags, self.cache, self.profile = {}, {"TF32"}, None, None

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile

    def create_timing_cache(self, data):
        return SimpleNamespace(known=data, serialize=lambda: memoryview(data + b"+"))

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.known.startswith(b"another"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Builder:
    configs: list = []  # noqa: RUF012

    def __init__(self, logger):
        self.logger = logger

    create_network = staticmethod(Network)
    create_optimization_profile = staticmethod(Profile)

    def create_builder_config(self):
        self.configs.append(Config())
        return self.configs[-1]

    def build_serialized_network(self, network, config):
        if config.builder_optimization_level == 5:
            self.logger.log("error", "no kernel for this network\n")
            return None
        shapes = json.dumps(config.profile.shapes).encode()
        return memoryview(len(shapes).to_bytes(4, "little") + shapes + network.graph)


class Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}

    def set_input_shape(self, name, shape):
        smallest, _, largest = self.engine.shapes[name]
        assert all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
        self.shape = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        (output,) = [output for output in self.engine.session.get_outputs() if output.name == name]
        return (self.shape[0], *output.shape[1:])

    def execute_async_v3(self, stream):
        assert stream == 7
        count = int(np.prod(self.shape))
        images = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(self.addresses["images"]))
        found = self.engine.session.run(None, {"images": images.reshape(self.shape)})
        for output, values in zip(self.engine.session.get_outputs(), found, strict=True):
            values = np.ascontiguousarray(values, np.float32)
            ctypes.memmove(self.addresses[output.name], values.ctypes.data, values.nbytes)
        return True


class Engine:
    def __init__(self, data):
        length = int.from_bytes(data[:4], "little")
        self.shapes = json.loads(data[4 : 4 + length])
        self.session = onnxruntime.InferenceSession(data[4 + length :])
        self.names = [part.name for part in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, number):
        return self.names[number]

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        return self.shapes[name]

    def create_execution_context(self):
        return Context(self)


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        if data == b"broken":
            self.logger.log("error", "magic tag does not match")
            return None
        return Engine(data)


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR="internal error", ERROR="error", WARNING="warning")


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """Put the stand-in where TensorRT would be, and the CPU where a GPU would be."""
    module = ModuleType("tensorrt")
    vars(module).update(
        __version__="10.9",
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=Parser,
        Runtime=Runtime,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("reid_tensorrt.engine.has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "GPU of the test")
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(EngineArtifact, "_place", lambda self: PLACE)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    Builder.configs.clear()
    return module


@pytest.fixture(scope="module")
def model():
    recipe = {
        "run": {"name": "x"},
        "train": [{"name": "synthetic"}],
        "backbone": {"name": "resnet18", "base": 16, "stages": 2, "ibn": "a", "weights": "none"},
        "input": {"height": SIZE[0], "width": SIZE[1]},
    }
    return seem_trained(build_model(load_recipe(recipe).recipe, 3))


IMAGES = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3)).astype(np.uint8)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_engine_is_built_proven_and_opened_again(trt, model, precision, tmp_path):
    exported = export(model, EngineExporter(precision, batches=(2, 4, 8)), IMAGES, tmp_path / "out")
    name = "model" if precision == "float32" else f"model-{precision}"
    assert [file.name for file in exported.files] == [f"{name}.engine", f"{name}.json"]
    assert exported.difference < {"float32": 1e-6, "float16": 1e-4, "int8": 0.02}[precision]
    opened = EngineArtifact(exported.files[0])
    assert (opened.about.precision, opened.about.dim, opened.largest) == (precision, model.dim, 8)
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGES[:19]).permute(0, 3, 1, 2)).embedding
    MOVED.clear()
    for count in (1, 2, 8, 9, 19):
        found = opened.run_tensors(torch.from_numpy(IMAGES[:count]))["embedding"]
        assert found.shape == (count, model.dim) and MOVED[0] == (count, *SIZE, 3) and MOVED[-1] == (count, model.dim)
        MOVED.clear()
        assert (1 - torch.cosine_similarity(found, expected[:count])).max() < 0.02
    (config,) = Builder.configs
    assert config.limits == {"workspace": 4 * 2**30} and not config.flags
    assert config.profile.shapes == {"images": ((2, *SIZE, 3), (4, *SIZE, 3), (8, *SIZE, 3))}


def test_what_was_timed_is_remembered(trt, model, tmp_path):
    for _ in range(2):
        export(model, EngineExporter("float32"), IMAGES, tmp_path / "out")
    assert [config.cache.known for config in Builder.configs] == [b"", b"+"]
    assert (tmp_path / "cache" / "reidcore" / "tensorrt-10.9-GPU-of-the-test.timing").read_bytes() == b"++"
    export(model, EngineExporter("float32", timing_cache=tmp_path / "own"), IMAGES, tmp_path / "out")
    assert (tmp_path / "own").read_bytes() == b"+"
    (tmp_path / "own").write_bytes(b"another GPU's")
    export(model, EngineExporter("float32", timing_cache=tmp_path / "own"), IMAGES, tmp_path / "out")
    assert (tmp_path / "own").read_bytes() == b"+"


def test_what_tensorrt_says_is_in_the_message(trt, model, tmp_path, monkeypatch):
    with pytest.raises(ContractError, match="cannot build an engine of the model: no kernel for this network"):
        export(model, EngineExporter(effort=5), IMAGES, tmp_path / "out")
    monkeypatch.setattr("reid_tensorrt.engine.cast_first", lambda graph: None)
    with pytest.raises(ContractError, match="cannot read the model: Transpose of UINT8"):
        export(model, EngineExporter(), IMAGES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_engine_of_another_place_is_refused(trt, model, tmp_path, monkeypatch):
    (file, _) = export(model, EngineExporter("float32"), IMAGES, tmp_path / "out").files
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "another")
    with pytest.raises(RunError, match=r"was built for the GPU GPU of the test, and this is another; export it again"):
        EngineArtifact(file)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "GPU of the test")
    trt.__version__ = "10.10"
    with pytest.raises(RunError, match=r"was built for TensorRT 10\.9, and this is 10\.10"):
        EngineArtifact(file)
    file.with_suffix(".json").unlink()
    file.write_bytes(b"broken")
    with pytest.raises(RunError, match=r"TensorRT cannot read .*: magic tag does not match"):
        EngineArtifact(file)


def test_a_run_is_exported_evaluated_and_embedded_with(trt, tmp_path):
    recipe = tiny_recipe(tmp_path, export=[{"name": "tensorrt", "precision": "float32"}])
    assert run_cli("run", recipe, "-q").status == 0
    run = tmp_path / "runs" / "toy"
    file = run / "export" / "tensorrt" / "model.engine"
    assert run_cli("evaluate", run, "--artifact", file).out == run_cli("evaluate", run).out
    done = run_cli("embed", file, tmp_path / "toy" / "gallery", "-o", tmp_path / "e.reid", "-q", "--device", "cpu")
    assert (done.status, done.out) == (0, f"{tmp_path / 'e.reid'}: 12 embeddings of 128 dimensions\n")


def test_pixel_values_are_cast_before_anything_else(model):
    graph = trace(model, About.of(model, *SIZE))
    plain = graph.SerializeToString()
    cast_first(graph)
    assert [node.op_type for node in graph.graph.node[:3]] == ["Cast", "Transpose", "Sub"]
    given = {"images": IMAGES[:3]}
    before, after = (onnxruntime.InferenceSession(g).run(None, given)[0] for g in (plain, graph.SerializeToString()))
    np.testing.assert_array_equal(before, after)


def test_without_tensorrt_or_a_gpu_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    recipe = tiny_recipe(tmp_path, export=[{"name": "tensorrt"}])
    assert run_cli("check", recipe, "--build").status == 0
    done = run_cli("run", recipe)
    assert done.status == 2 and 'pip install "reid-tensorrt[tensorrt]"' in done.err
    assert not (tmp_path / "runs").exists()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr("reid_tensorrt.engine.has_gpu", lambda: False)
    assert "torch sees none here" in run_cli("run", recipe).err
    (tmp_path / "x.engine").write_bytes(b"x")
    assert "torch sees none here" in run_cli("embed", tmp_path / "x.engine", tmp_path, "-o", tmp_path / "e").err


def test_batches_that_fall_are_refused(tmp_path):
    done = run_cli("check", tiny_recipe(tmp_path, export=[{"name": "tensorrt", "batches": [8, 4, 16]}]))
    assert done.status == 2 and "found batches = [8, 4, 16]; expected numbers that do not fall" in done.err
