"""ONNX graphs of models: traced, named after the modules, and in other precisions. B batch, H W image, D embedding."""

from __future__ import annotations

import copy
import logging
import math
import re
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reidcore.errors import ContractError
from reidcore.export.proof import About, Inference

IMAGES, BATCH = "images", "batch"
"""The names of a graph's input and of its first dimension."""

PRECISE = ("BatchNormalization", "InstanceNormalization", "Pow", "ReduceMean")
"""Operations that float16 is too coarse for: sums over positions, and the necks that scale small differences up."""


class _Program(nn.Module):
    """What a file computes of its input: (B, H, W, 3) uint8, or without `fold` (B, 3, H, W) normalised float32."""

    def __init__(self, model: Any, names: Sequence[str], fold: bool, unit_length: bool) -> None:
        super().__init__()
        self.names = names
        self.model = Inference(copy.deepcopy(model).cpu().eval())
        self.fold, self.unit_length = fold, unit_length
        if not fold:
            self.model.normalize = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model(images.permute(0, 3, 1, 2) if self.fold else images)
        if self.unit_length:
            found["embedding"] = F.normalize(found["embedding"])
        return tuple(found[name].float() for name in self.names)


def trace(
    model: Any, about: About, *, fold: bool = True, unit_length: bool = False, opset: int = 18
) -> onnx.ModelProto:
    """Return the graph of a model in evaluation mode, checked by onnx, with any number of images.

    Its input "images" is (B, H, W, 3) uint8 RGB, or without `fold` (B, 3, H, W) float32, normalised. Its outputs are
    "embedding", (B, D) float32, of length 1 with `unit_length`, and the extras by their names. Nodes are called after
    the model's modules. Raises ContractError, which names what cannot be expressed.
    """
    names = ["embedding", *model.aggregator.extras]
    program = _Program(model, names, fold, unit_length)
    shape = (2, about.height, about.width, 3) if fold else (2, 3, about.height, about.width)
    example = torch.zeros(shape, dtype=torch.uint8 if fold else torch.float32)
    exported = None
    with _quiet(), torch.no_grad():
        try:
            exported = torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},))
            written = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=[IMAGES],
                output_names=names,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            raise ContractError(f"the model cannot be written as ONNX: {_cause(error, exported)}") from None
    assert written is not None
    graph = written.model_proto
    _name_after_modules(graph)
    for value in (*graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del graph.graph.value_info[:]
    graph.graph.name = "reidcore"
    return describe(graph, about)


def _cause(error: BaseException, exported: Any) -> str:
    """Return what went wrong at first, in which layer or line; or what is to be done, where it is known."""
    if "specialized it to be a constant" in str(error):
        return "it takes the number of images for a constant, as len(x) does; write x.shape[0]"
    texts = [str(error)]
    while error.__cause__:
        error = error.__cause__
        texts.append(str(error))
    text = "\n".join(texts)
    where = ""
    if (node := re.search(r"translating node %(\w+)", text)) and exported is not None:
        stacks = [n.meta.get("nn_module_stack") for n in exported.graph.nodes if n.name == node[1]]
        paths = [path for path, _ in stacks[0].values()] if stacks and stacks[0] else [""]
        where = f"layer '{paths[-1].removeprefix('model.')}': "
    elif line := re.search(r'File "(.+)", line (\d+), in \w+\n', text):
        where = f"{line[1]}:{line[2]}: "
    return where + (texts[-1].strip() or type(error).__name__).splitlines()[0]


def describe(graph: onnx.ModelProto, about: About) -> onnx.ModelProto:
    """Write into a graph what it is, and check it."""
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, about.texts())
    graph.producer_name, graph.producer_version = "reidcore", about.version
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _name_after_modules(graph: onnx.ModelProto) -> None:
    """Call each node after its module, "backbone.layer1.0.conv1", and drop what the tracer noted, paths among it."""
    taken: Counter[str] = Counter()
    for node in graph.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        inner = [scope.removeprefix("model.") for scope in literal_eval(scopes)[1:-1] if scope != "model"]
        name = f"{inner[-1]}.{node.op_type}" if inner else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    for initializer in graph.graph.initializer:
        initializer.ClearField("metadata_props")


def to_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with float16 weights and arithmetic, but for its input, its outputs and what is `PRECISE`."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    first = next(i for i, node in enumerate(graph.graph.node) if node.op_type == "Conv")
    with _quiet():
        halved: onnx.ModelProto = convert_float_to_float16(
            copy.deepcopy(graph),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *PRECISE],
            # pixel values and their mean
            node_block_list=[*(node.name for node in graph.graph.node[:first]), *_scales_of_attention(graph)],
        )
        ONNXModel(halved).topological_sort()
    return halved


def _scales_of_attention(graph: onnx.ModelProto) -> list[str]:
    """Return the nodes that multiply a factor of a matrix product by one number.

    In float16 ONNX Runtime 1.32 crashes when it folds them into the product.
    """
    numbers = {tensor.name for tensor in graph.graph.initializer if math.prod(tensor.dims) == 1}
    factors = {name for node in graph.graph.node if node.op_type == "MatMul" for name in node.input}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "Mul" and node.output[0] in factors and numbers & set(node.input)
    ]


def quantize(graph: onnx.ModelProto, images: NDArray[Any], *, symmetric: bool = False) -> onnx.ModelProto:
    """Return the graph with 8-bit convolutions and products, as explicit quantisation (QDQ) with static ranges.

    `images`, what the graph takes, are to calibrate with. Weights have a scale a channel and no zero point, and 7 of
    the 8 bits, since CPUs differ in what they make of larger ones. With `symmetric` they have all 8, activations have
    no zero point either, and only what goes into convolutions, products and sums is rounded; of a transformer, only
    what goes into convolutions and products.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.array_split(images, -(-len(images) // 16)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {IMAGES: batch}

    products = ["Conv", "Gemm", "MatMul"]
    # what a transformer's layers add to has outliers, beside which 8 bits leave nothing of the rest
    adds = all(node.op_type != "LayerNormalization" for node in graph.graph.node)
    inputs_only = symmetric or not adds
    sums = [*products, "Add"] if adds else products
    folded = copy.deepcopy(graph)
    pixels = None if symmetric else _fold_normalization(folded)
    with TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "int8.onnx"
        quantize_static(
            folded,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # CPUs without VNNI add two products of 8 bits in 16, which overflow unless weights are of 7 bits: files
            # would be right on one machine and wrong on another (a small transformer by 0.08 of its cosines)
            reduce_range=not symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=sums if inputs_only else [*sums, "Relu", "MaxPool", "AveragePool", "Concat"],
            extra_options={
                "ActivationSymmetric": symmetric,
                "OpTypesToExcludeOutputQuantization": sums if inputs_only else [],
                "QuantizeBias": not symmetric,
                "TensorQuantOverrides": pixels or {},
            },
        )
        quantized = onnx.load(file)
    if pixels:
        _take_pixels_as_they_are(quantized)
    return quantized


def _fold_normalization(graph: onnx.ModelProto) -> dict[str, Any]:
    """Move the normalisation of pixel values x into the first convolution: W((x - m) s) = (W s)(x - z) + W s (z - m).

    So the pixel values, 8-bit numbers with the zero point z, are what is convolved, and a small network does not spend
    a quarter of its time on them. z is the mean over the three channels: where the convolution pads, it sees this grey
    in the place of each channel's own mean. Returns how the values are to be rounded, nothing where there is no such
    convolution.
    """
    nodes, weights = graph.graph.node, {tensor.name: tensor for tensor in graph.graph.initializer}
    if [node.op_type for node in nodes[:5]] != ["Transpose", "Cast", "Sub", "Mul", "Conv"]:
        return {}
    _, _, sub, mul, conv = nodes[:5]
    if sum(mul.output[0] in node.input for node in nodes) > 1:
        return {}
    mean, scale = (onnx.numpy_helper.to_array(weights[node.input[1]]) for node in (sub, mul))
    kernel = onnx.numpy_helper.to_array(weights[conv.input[1]]) * scale
    zero = float(np.round(mean.mean()))
    bias = onnx.numpy_helper.to_array(weights[conv.input[2]]) if len(conv.input) > 2 else 0
    bias = bias + (kernel * (zero - mean)).sum((1, 2, 3))
    for name, values in (("pixels.zero", np.array(zero)), ("pixels.kernel", kernel), ("pixels.bias", bias)):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    sub.input[1] = "pixels.zero"
    conv.input[:] = [sub.output[0], "pixels.kernel", "pixels.bias"]
    nodes.remove(mul)
    _drop_unused(graph)
    return {sub.output[0]: [{"scale": np.array(1, np.float32), "zero_point": np.array(zero, np.uint8)}]}


def _take_pixels_as_they_are(graph: onnx.ModelProto) -> None:
    """Leave out what makes floating-point numbers of the pixel values, and of these the same 8-bit numbers again."""
    nodes = graph.graph.node
    sub = next(node for node in nodes if node.op_type == "Sub" and node.input[1] == "pixels.zero")
    cast = next(node for node in nodes if node.output[0] == sub.input[0])
    rounded = next(node for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] == sub.output[0])
    for node in nodes:
        node.input[:] = [cast.input[0] if name == rounded.output[0] else name for name in node.input]
    for node in (cast, sub, rounded):
        nodes.remove(node)
    _drop_unused(graph)


def _drop_unused(graph: onnx.ModelProto) -> None:
    """Leave out weights that no node reads."""
    used = {name for node in graph.graph.node for name in node.input}
    weights = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(weights)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' remarks on their own progress, and their accounts of errors, from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
