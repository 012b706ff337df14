"""From a network of Caffe's layers to an ONNX graph. N images, C channels, H W map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reidcore.errors import ContractError, RunError, os_message
from reidcore.export.caffe import outputs_of, read_notes, read_prototxt
from reidcore.export.caffe_schema import net_class
from reidcore.export.caffe_writer import pooled_size
from reidcore.export.graph import BATCH, IMAGES, describe
from reidcore.export.proof import About

OPSET = 18
_TEST = 1  # of the enum Phase


def read_net(prototxt: Path, caffemodel: Path) -> Any:
    """Return a network with the weights of its layers. Raises RunError for files that are not Caffe's."""
    net, trained = read_prototxt(prototxt), net_class()()
    try:
        trained.ParseFromString(caffemodel.read_bytes())
    except OSError as error:
        raise RunError(os_message(error, "read", caffemodel)) from None
    except DecodeError:
        raise RunError(f"{caffemodel} holds no weights of Caffe") from None
    if trained.layers and not trained.layer:
        raise RunError(
            f"{caffemodel} is written as Caffe did in 2014; convert it by Caffe's upgrade_net_proto_binary first"
        )
    blobs = {layer.name: layer.blobs for layer in trained.layer}
    for layer in net.layer:
        if not layer.blobs and layer.name in blobs:
            layer.blobs.extend(blobs[layer.name])
    return net


def to_onnx(net: Any) -> onnx.ModelProto:
    """Return a network with weights as an ONNX graph that takes any number of images.

    Inputs and outputs have the network's names, and its sizes but for the first. Raises ContractError, which names the
    layer that is not known or lacks its weights.
    """
    return _Reader(net).graph


def convert(prototxt: Path, output: Path) -> onnx.ModelProto:
    """Write an ONNX file of a `.prototxt` and the `.caffemodel` beside it, and return its graph.

    A file that reidcore exported becomes one that takes (B, H, W, 3) uint8 images, as its own ONNX files do.
    """
    graph = to_onnx(read_net(prototxt, prototxt.with_suffix(".caffemodel")))
    if about := About.read(read_notes(prototxt.read_text("utf-8", errors="replace"))):
        _take_images(graph)
        describe(graph, about)
    try:
        onnx.save(graph, output)
    except OSError as error:
        raise RunError(os_message(error, "write", output)) from None
    return graph


def _take_images(graph: onnx.ModelProto) -> None:
    """Have a graph of (N, 3, H, W) pixel values take (B, H, W, 3) uint8."""
    given = graph.graph.input[0]
    _, channels, height, width = (dim.dim_value for dim in given.type.tensor_type.shape.dim)
    first = [
        helper.make_node("Transpose", [IMAGES], ["pixels"], f"{given.name}.Transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["pixels"], [given.name], f"{given.name}.Cast", to=TensorProto.FLOAT),
    ]
    for position, node in enumerate(first):
        graph.graph.node.insert(position, node)
    shape = [BATCH, height, width, channels]
    given.CopyFrom(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape))


class _Reader:
    """Goes through the layers in order. `values` are the ONNX names of Caffe's blobs, `shapes` those of values, with
    -1 for N: in Caffe a layer may write its result in the place of what it read."""

    def __init__(self, net: Any) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.values: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inputs: list[str] = []
        self.name = net.name
        shapes = [list(shape.dim) for shape in net.input_shape]
        shapes = shapes or [list(net.input_dim[4 * i : 4 * i + 4]) for i in range(len(net.input))]
        self._inputs(net.input, shapes)
        for layer in net.layer:
            # what is there for training only
            included = not layer.include or any(_of_test(rule, default=True) for rule in layer.include)
            if included and not any(_of_test(rule, default=False) for rule in layer.exclude):
                self._layer(layer)
        if not self.inputs:
            raise ContractError("the network says nothing of its input: no layer 'Input', no 'input_dim'")
        self.graph = self._assemble(list(outputs_of(net)))

    def _assemble(self, names: Sequence[str]) -> onnx.ModelProto:
        outputs = []
        for blob in (name for name in names if name in self.values):
            value = self.values[blob]
            name = f"{blob}_out" if blob in self.inputs else blob  # what is written in the place of an input
            self._add("Identity", [value], self.shapes[value], output=name)
            outputs.append(_value(name, self.shapes[name]))
        inputs = [_value(name, self.shapes[name]) for name in self.inputs]
        graph = helper.make_graph(self.nodes, self.name or "caffe", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        model.producer_name = "reidcore"
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ContractError(f"the network does not fit together: {str(error).strip().splitlines()[-1]}") from None
        return model

    def _inputs(self, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        if len(names) != len(shapes) or any(len(shape) < 2 for shape in shapes):
            raise ContractError(f"the network does not say how large its input '{', '.join(names)}' is")
        for name, shape in zip(names, shapes, strict=True):
            self.inputs.append(name)
            self.values[name] = name
            self.shapes[name] = (-1, *shape[1:])
            self.batch = shape[0]

    def _layer(self, layer: Any) -> None:
        self.layer = layer
        if layer.type == "Input":
            shapes = [list(shape.dim) for shape in layer.input_param.shape]
            self._inputs(layer.top, shapes * (len(layer.top) if len(shapes) == 1 else 1))
            return
        translate = getattr(self, f"layer_{layer.type.lower()}", None)
        if translate is None:
            raise self._error(f"layers of type {layer.type} are not known")
        for blob in layer.bottom:
            if blob not in self.values:
                raise self._error(f"there is no blob '{blob}'")
        try:
            made = translate(*(self.values[blob] for blob in layer.bottom))
            made = made if isinstance(made, list) else [made]
            self.values |= dict(zip(layer.top, made, strict=True))
        except IndexError:
            raise self._error("it lacks weights") from None
        except (ArithmeticError, TypeError, ValueError) as error:
            raise self._error(f"its blobs, weights and options do not fit together ({error})") from None

    def _error(self, problem: str) -> ContractError:
        return ContractError(f"layer '{self.layer.name}': {problem}")

    # what layers are made of

    def _add(
        self, operation: str, inputs: Sequence[str], shape: Sequence[int], output: str = "", **options: Any
    ) -> str:
        number = len(self.nodes)
        output = output or f"{self.layer.name}/{number}"
        name = f"{self.layer.name}.{operation}_{number}"
        self.nodes.append(helper.make_node(operation, inputs, [output], name, **options))
        self.shapes[output] = tuple(shape)
        return output

    def _like(self, operation: str, *inputs: str, **options: Any) -> str:
        return self._add(operation, inputs, self.shapes[inputs[0]], **options)

    def _constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"{self.layer.name}/weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def _blob(self, number: int) -> NDArray[np.float32]:
        blob = self.layer.blobs[number]
        legacy = (blob.num, blob.channels, blob.height, blob.width)
        shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
        return np.array(blob.data or blob.double_data, np.float32).reshape(shape)

    def _axis(self, axis: int, value: str) -> int:
        return axis % len(self.shapes[value])

    def _pair(self, parameter: Any, name: str, default: int) -> tuple[int, int]:
        """Return height and width of an option that is given as one number, as two, or as `name_h` and `name_w`."""
        short = name.removesuffix("_size")
        if parameter.HasField(f"{short}_h") or parameter.HasField(f"{short}_w"):
            return getattr(parameter, f"{short}_h"), getattr(parameter, f"{short}_w")
        given = getattr(parameter, name)
        if isinstance(given, int):
            return (given, given) if parameter.HasField(name) else (default, default)
        numbers = [*given] or [default]
        return (numbers[0], numbers[-1])

    def _reshaped(self, x: str, shape: Sequence[int]) -> str:
        if tuple(shape) == self.shapes[x]:
            return x
        if math.prod(shape[1:]) != math.prod(self.shapes[x][1:]):
            raise self._error(f"{self.shapes[x][1:]} cannot be given the shape {tuple(shape[1:])}")
        return self._add("Reshape", [x, self._constant([0, *shape[1:]], np.int64)], shape)

    def _broadcast(self, x: str, values: NDArray[Any] | str, axis: int) -> str:
        """Return weights, or a value with a batch, with dimensions of 1 up to those of `x` from `axis` on."""
        rank = len(self.shapes[x])
        if isinstance(values, str):
            return self._reshaped(values, (*self.shapes[values], *[1] * (rank - axis - len(self.shapes[values]))))
        return self._constant(values.reshape(*values.shape, *[1] * (rank - axis - values.ndim)))

    # one method a type of layer, by its name in lower case; each returns the value that it makes, or several

    def layer_split(self, x: str) -> list[str]:
        return [x] * len(self.layer.top)

    def layer_dropout(self, x: str) -> str:
        return x

    def layer_silence(self, *xs: str) -> list[str]:
        return []

    def layer_convolution(self, x: str) -> str:
        parameter = self.layer.convolution_param
        kernel, pads = self._blob(0), self._pair(parameter, "pad", 0)
        strides = self._pair(parameter, "stride", 1)
        dilations = (parameter.dilation[0], parameter.dilation[-1]) if parameter.dilation else (1, 1)
        kernel = kernel.reshape(parameter.num_output, self.shapes[x][1] // parameter.group, *kernel.shape[-2:])
        weights = [self._constant(kernel)]
        if parameter.bias_term:
            weights.append(self._constant(self._blob(1).reshape(-1)))
        sizes = (
            (size + 2 * pad - dilation * (length - 1) - 1) // stride + 1
            for size, pad, dilation, length, stride in zip(
                self.shapes[x][2:], pads, dilations, kernel.shape[2:], strides, strict=True
            )
        )
        return self._add(
            "Conv",
            [x, *weights],
            (-1, parameter.num_output, *sizes),
            group=parameter.group,
            kernel_shape=kernel.shape[2:],
            pads=pads * 2,
            strides=strides,
            dilations=dilations,
        )

    def layer_pooling(self, x: str) -> str:
        parameter = self.layer.pooling_param
        method = {0: "Max", 1: "Average"}.get(parameter.pool)
        if method is None:
            raise self._error("stochastic pooling is for training")
        _, channels, *sizes = self.shapes[x]
        if parameter.global_pooling:
            return self._add(f"Global{method}Pool", [x], (-1, channels, 1, 1))
        kernel = self._pair(parameter, "kernel_size", 0)
        strides, pads = self._pair(parameter, "stride", 1), self._pair(parameter, "pad", 0)
        pooled, ends = [], []
        for size, length, stride, pad in zip(sizes, kernel, strides, pads, strict=True):
            count = pooled_size(size, length, stride, pad)
            if parameter.round_mode == 1:
                count = (size + 2 * pad - length) // stride + 1
            end = (count - 1) * stride + length - size - pad
            if length < 1 or count < 1 or end >= length:
                raise self._error("a window would lie outside of its map")
            pooled.append(count)
            ends.append(max(end, 0))
        options: dict[str, Any] = {}
        if method == "Average":
            # the divisor counts the padding, but not what lies behind it
            if any(pads):
                padding = [0, 0, *pads, 0, 0, *pads]
                shape = (-1, channels, *(size + 2 * pad for size, pad in zip(sizes, pads, strict=True)))
                x = self._add("Pad", [x, self._constant(padding, np.int64)], shape)
                ends = [max(end - pad, 0) for end, pad in zip(ends, pads, strict=True)]
                pads = (0, 0)
            options["count_include_pad"] = 0
        return self._add(
            f"{method}Pool",
            [x],
            (-1, channels, *pooled),
            kernel_shape=kernel,
            strides=strides,
            pads=[*pads, *ends],
            **options,
        )

    def layer_innerproduct(self, x: str) -> str:
        parameter = self.layer.inner_product_param
        if self._axis(parameter.axis, x) != 1:
            raise self._error(f"products along axis {parameter.axis} are not known")
        width = math.prod(self.shapes[x][1:])
        rows = self._blob(0)
        rows = rows.reshape((width, parameter.num_output) if parameter.transpose else (parameter.num_output, width))
        weights = [self._constant(rows if parameter.transpose else rows.T)]
        if parameter.bias_term:
            weights.append(self._constant(self._blob(1).reshape(-1)))
        return self._add("Gemm", [self._reshaped(x, (-1, width)), *weights], (-1, parameter.num_output))

    def layer_batchnorm(self, x: str) -> str:
        factor = self._blob(2).reshape(-1)[0]
        mean, variance = (self._blob(number).reshape(-1) / (factor or 1) for number in (0, 1))
        ones, zeros = np.ones_like(mean), np.zeros_like(mean)
        weights = [self._constant(values) for values in (ones, zeros, mean, variance)]
        return self._like("BatchNormalization", x, *weights, epsilon=self.layer.batch_norm_param.eps)

    def layer_scale(self, x: str, factors: str | None = None) -> str:
        parameter = self.layer.scale_param
        axis = self._axis(parameter.axis, x)
        if factors is not None and axis:
            raise self._error(f"products along axis {axis} with another blob are not known")
        scale = self._blob(0) if factors is None else factors
        scaled = self._like("Mul", x, self._broadcast(x, scale, axis))
        if not parameter.bias_term:
            return scaled
        return self._like("Add", scaled, self._broadcast(x, self._blob(1 if factors is None else 0), axis))

    def layer_bias(self, x: str, summands: str | None = None) -> str:
        axis = self._axis(self.layer.bias_param.axis, x)
        if summands is not None and axis:
            raise self._error(f"sums along axis {axis} with another blob are not known")
        return self._like("Add", x, self._broadcast(x, self._blob(0) if summands is None else summands, axis))

    def layer_relu(self, x: str) -> str:
        slope = self.layer.relu_param.negative_slope
        return self._like("LeakyRelu", x, alpha=slope) if slope else self._like("Relu", x)

    def layer_prelu(self, x: str) -> str:
        return self._like("PRelu", x, self._broadcast(x, self._blob(0).reshape(-1), 1))

    def layer_elu(self, x: str) -> str:
        return self._like("Elu", x, alpha=self.layer.elu_param.alpha)

    def layer_sigmoid(self, x: str) -> str:
        return self._like("Sigmoid", x)

    def layer_tanh(self, x: str) -> str:
        return self._like("Tanh", x)

    def layer_absval(self, x: str) -> str:
        return self._like("Abs", x)

    def layer_softmax(self, x: str) -> str:
        return self._like("Softmax", x, axis=self._axis(self.layer.softmax_param.axis, x))

    def _affine(self, x: str, scale: float, shift: float) -> str:
        x = x if scale == 1 else self._like("Mul", x, self._constant(scale))
        return x if shift == 0 else self._like("Add", x, self._constant(shift))

    def layer_power(self, x: str) -> str:
        parameter = self.layer.power_param
        x = self._affine(x, parameter.scale, parameter.shift)
        return x if parameter.power == 1 else self._like("Pow", x, self._constant(parameter.power))

    def layer_exp(self, x: str) -> str:
        parameter = self.layer.exp_param
        log = 1.0 if parameter.base == -1 else math.log(parameter.base)
        return self._like("Exp", self._affine(x, parameter.scale * log, parameter.shift * log))

    def layer_lrn(self, x: str) -> str:
        parameter = self.layer.lrn_param
        if parameter.norm_region == 1:
            raise self._error("normalisation within channels is not known")
        size, alpha, beta, bias = parameter.local_size, parameter.alpha, parameter.beta, parameter.k
        return self._like("LRN", x, size=size, alpha=alpha, beta=beta, bias=bias)

    def layer_mvn(self, x: str) -> str:
        parameter = self.layer.mvn_param
        axes = self._constant([1, 2, 3] if parameter.across_channels else [2, 3], np.int64)

        def mean(of: str) -> str:
            shape = self.shapes[of]
            return self._add("ReduceMean", [of, axes], (-1, 1 if parameter.across_channels else shape[1], 1, 1))

        centred = self._like("Sub", x, mean(x))
        if not parameter.normalize_variance:
            return centred
        deviation = self._like("Sqrt", mean(self._like("Mul", centred, centred)))
        return self._like("Div", centred, self._like("Add", deviation, self._constant(parameter.eps)))

    def layer_eltwise(self, *xs: str) -> str:
        parameter = self.layer.eltwise_param
        if len({self.shapes[x] for x in xs}) > 1:
            raise self._error("its blobs have different shapes")
        weights = [*parameter.coeff] or [1.0] * len(xs)
        terms = [self._affine(x, weight, 0) for x, weight in zip(xs, weights, strict=True)]
        result = terms[0]
        for term in terms[1:]:
            result = self._like({0: "Mul", 1: "Add", 2: "Max"}[parameter.operation], result, term)
        return result

    def layer_concat(self, *xs: str) -> str:
        parameter = self.layer.concat_param
        axis = self._axis(parameter.concat_dim if parameter.HasField("concat_dim") else parameter.axis, xs[0])
        if axis == 0:
            raise self._error("it joins the images of batches")
        shape = list(self.shapes[xs[0]])
        if any(
            list(self.shapes[x][:axis] + self.shapes[x][axis + 1 :]) != shape[:axis] + shape[axis + 1 :] for x in xs
        ):
            raise self._error("its blobs have different shapes")
        shape[axis] = sum(self.shapes[x][axis] for x in xs)
        return self._add("Concat", xs, shape, axis=axis)

    def layer_slice(self, x: str) -> list[str]:
        parameter = self.layer.slice_param
        axis = self._axis(parameter.slice_dim if parameter.HasField("slice_dim") else parameter.axis, x)
        if axis == 0:
            raise self._error("it parts the images of a batch")
        shape, count = self.shapes[x], len(self.layer.top)
        points = [*parameter.slice_point] or [shape[axis] * part // count for part in range(1, count)]
        if sorted({0, *points, shape[axis]}) != [0, *points, shape[axis]]:
            raise self._error(f"it cuts {shape[axis]} at {', '.join(map(str, points))}")
        made = []
        for start, stop in zip([0, *points], [*points, shape[axis]], strict=True):
            part = (*shape[:axis], stop - start, *shape[axis + 1 :])
            bounds = [self._constant([value], np.int64) for value in (start, stop, axis)]
            made.append(self._add("Slice", [x, *bounds], part))
        return made

    def layer_flatten(self, x: str) -> str:
        parameter, shape = self.layer.flatten_param, self.shapes[x]
        first, last = self._axis(parameter.axis, x), self._axis(parameter.end_axis, x)
        if first == 0:
            raise self._error("it mixes the images of a batch")
        return self._reshaped(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))

    def layer_reshape(self, x: str) -> str:
        parameter, shape = self.layer.reshape_param, self.shapes[x]
        first = parameter.axis % (len(shape) + 1)
        last = len(shape) if parameter.num_axes == -1 else first + parameter.num_axes
        dims = [shape[first + i] if dim == 0 else dim for i, dim in enumerate(parameter.shape.dim)]
        wanted = [*shape[:first], *dims, *shape[last:]]
        if wanted[0] == self.batch:  # written for one size of batch
            wanted[0] = -1
        if wanted[0] != -1:
            raise self._error("it mixes the images of a batch")
        if -1 in wanted[1:]:
            rest = math.prod(dim for dim in wanted[1:] if dim != -1)
            wanted = [-1, *(math.prod(shape[1:]) // rest if dim == -1 else dim for dim in wanted[1:])]
        return self._reshaped(x, wanted)


def _of_test(rule: Any, default: bool) -> bool:
    return rule.phase == _TEST if rule.HasField("phase") else default


def _value(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape[1:]])
