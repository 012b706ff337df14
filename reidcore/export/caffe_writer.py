"""From an ONNX graph to a network of Caffe's layers. N images, C channels, H W map."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reidcore.errors import ContractError
from reidcore.export.caffe_schema import net_class

DATA = "data"
"""The input's name: (N, 3, H, W), RGB pixel values in 0..255."""

_FLOATS = (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)


def write_net(graph: onnx.ModelProto) -> Any:
    """Return a graph, as `reidcore.export.graph.trace` makes it of (B, H, W, 3) images, as a `NetParameter`.

    Every layer is stock Caffe's, and computes the same whoever reads it: what Caffe's readers disagree about, such as
    where `MVN` adds its epsilon, is written in layers that leave no choice. Raises ContractError, which names the layer
    that Caffe cannot express.
    """
    return _Writer(graph).net


class _Refused(Exception):
    """What Caffe cannot do with a node."""


class _Writer:
    """Goes through the nodes in order. `blobs` are the names of values in Caffe, `shapes` theirs with -1 for N."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.net = net_class()(name=graph.graph.name)
        inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
        self.weights = {t.name: onnx.numpy_helper.to_array(t) for t in inferred.initializer}
        values = (*inferred.input, *inferred.output, *inferred.value_info)
        self.shapes: dict[str, tuple[int, ...]] = {value.name: _shape(value) for value in values}
        self.blobs: dict[str, str] = {}
        self.taken = {DATA}
        given = inferred.input[0].name
        outputs = [value.name for value in inferred.output]
        height, width = self.shapes[given][1:3]
        layer = self.net.layer.add(name=DATA, type="Input", top=[DATA])
        layer.input_param.shape.add(dim=[1, 3, height, width])
        for node in inferred.node:
            if node.op_type == "Transpose" and node.input[0] == given:
                self.blobs[node.output[0]] = DATA  # (N, 3, H, W) to begin with
                continue
            if node.op_type == "Shape":  # whatever is made of it is refused
                continue
            self.name = node.name.rpartition(".")[0] or DATA
            try:
                self._translate(node)
            except _Refused as refused:
                raise ContractError(
                    f"Caffe has no layer for '{self.name}': it cannot express {refused} ({node.op_type})"
                ) from None
        shared = Counter(self.blobs[name] for name in outputs)
        for name in outputs:
            self._rename(self.blobs[name], name, shared[self.blobs[name]] > 1)

    def _translate(self, node: onnx.NodeProto) -> None:
        translate: Callable[[Any, Any], str] | None = getattr(self, f"node_{node.op_type.lower()}", None)
        if translate is None:
            raise _Refused("this operation")
        self.blobs[node.output[0]] = translate(node, _attributes(node))

    # layers

    def _layer(self, kind: str, *bottoms: str, tops: int = 1, **parameters: dict[str, Any]) -> Any:
        """Add a layer named after the module in progress, whose tops are called as it is."""
        name = self._free(self.name)
        layer = self.net.layer.add(name=name, type=kind, bottom=bottoms)
        layer.top.extend([name] if tops == 1 else [self._free(f"{name}.{number}") for number in range(tops)])
        for parameter, values in parameters.items():
            message = getattr(layer, parameter)
            message.SetInParent()
            for key, value in values.items():
                getattr(message, key).extend(value) if isinstance(value, list) else setattr(message, key, value)
        return layer

    def _free(self, name: str) -> str:
        number, free = 1, name
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free

    def _rename(self, blob: str, name: str, shared: bool) -> None:
        """Call an output by the graph's name: the blob, and its layer, by which OpenCV knows outputs.

        One that other layers read, or that is `shared` by outputs, is copied, since an output is what nobody reads.
        """
        made_by = next(layer for layer in self.net.layer if blob in layer.top)
        read = any(blob in layer.bottom for layer in self.net.layer)
        if made_by.type == "Input" or len(made_by.top) > 1 or read or shared:
            made_by = self._layer("Power", blob)
        made_by.name = name
        made_by.top[:] = [name]

    def _weigh(self, layer: Any, *arrays: NDArray[Any]) -> str:
        for array in arrays:
            blob = layer.blobs.add()
            blob.shape.dim.extend(array.shape)
            blob.data.extend(np.asarray(array, np.float32).ravel().tolist())
        return str(layer.top[0])

    def _scale(self, blob: str, scale: NDArray[Any], shift: NDArray[Any] | None = None) -> str:
        """Multiply each channel by a number, and add one."""
        layer = self._layer("Scale", blob, scale_param={} if shift is None else {"bias_term": True})
        return self._weigh(layer, *(values for values in (scale, shift) if values is not None))

    def _power(self, blob: str, power: float = 1.0, scale: float = 1.0, shift: float = 0.0) -> str:
        """(shift + scale x)^power."""
        given = {"power": (power, 1.0), "scale": (scale, 1.0), "shift": (shift, 0.0)}
        changed = {name: value for name, (value, default) in given.items() if value != default}
        return str(self._layer("Power", blob, power_param=changed).top[0]) if changed else blob

    def _reshaped(self, blob: str, shape: Sequence[int]) -> str:
        """Give a blob another shape, whose first dimension stays."""
        if len(shape) == 2:
            return str(self._layer("Flatten", blob).top[0])
        layer = self._layer("Reshape", blob)
        layer.reshape_param.shape.dim.extend([0, *shape[1:]])
        return str(layer.top[0])

    def _pooled(self, blob: str, method: str) -> str:
        return str(self._layer("Pooling", blob, pooling_param={"pool": _POOLS[method], "global_pooling": True}).top[0])

    def _times(self, blob: str, factors: str, shape: Sequence[int]) -> str:
        """Multiply (N, C, ...) by a number for each image and channel, which come in `shape`."""
        flat = factors if len(shape) == 2 else self._reshaped(factors, shape[:2])
        return str(self._layer("Scale", blob, flat, scale_param={"axis": 0}).top[0])

    def _cropped(self, blob: str, axis: int, start: int, stop: int, length: int) -> str:
        """Take the part from `start` to `stop` of an axis of `length`."""
        points = [point for point in (start, stop) if 0 < point < length]
        if not points:
            return blob
        layer = self._layer("Slice", blob, tops=len(points) + 1, slice_param={"axis": axis, "slice_point": points})
        kept = 0 if start == 0 else 1
        for position, top in enumerate(layer.top):
            if position != kept:  # which would be an output
                silence = self._free(f"{top}.unused")
                self.net.layer.add(name=silence, type="Silence", bottom=[top])
        return str(layer.top[kept])

    # what nodes are made of

    def _blob(self, name: str) -> str:
        if name not in self.blobs:
            raise _Refused("what is not computed from the images alone")
        return self.blobs[name]

    def _number(self, name: str) -> float:
        """Return a constant of one element."""
        if name not in self.weights or self.weights[name].size != 1:
            raise _Refused("a second operand that is not one number")
        return float(self.weights[name].reshape(()))

    def _channels(self, name: str, of: str) -> NDArray[Any]:
        """Return a constant that is a number for each channel of a value."""
        shape, values = self.shapes[of], self.weights[name]
        full = (1,) * (len(shape) - values.ndim) + values.shape
        if len(full) != len(shape) or any(size != 1 for axis, size in enumerate(full) if axis != 1):
            raise _Refused("a constant that differs from place to place")
        return np.broadcast_to(values.reshape(-1), (shape[1],))

    # one method an operation, by its name in lower case

    def node_identity(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._blob(node.input[0])

    def node_cast(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        if options["to"] not in _FLOATS:
            raise _Refused("another type than float")
        return self._blob(node.input[0])

    def node_conv(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        kernel = self.weights.get(node.input[1])
        if kernel is None or kernel.ndim != 4:
            raise _Refused("a convolution with computed weights, or not of maps")
        pads = options.get("pads", [0, 0, 0, 0])
        if list(pads[:2]) != list(pads[2:]) or options.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise _Refused("padding that differs from side to side")
        strides, dilations = options.get("strides", [1, 1]), options.get("dilations", [1, 1])
        bias = self.weights[node.input[2]] if len(node.input) > 2 else None
        parameters: dict[str, Any] = {
            "num_output": len(kernel),
            "group": options.get("group", 1),
            "kernel_h": kernel.shape[2],
            "kernel_w": kernel.shape[3],
            "stride_h": strides[0],
            "stride_w": strides[1],
            "pad_h": pads[0],
            "pad_w": pads[1],
        }
        if list(dilations) != [1, 1]:
            parameters["dilation"] = list(dilations)
        if bias is None:
            parameters["bias_term"] = False
        layer = self._layer("Convolution", self._blob(node.input[0]), convolution_param=parameters)
        return self._weigh(layer, kernel, *([] if bias is None else [bias]))

    def node_gemm(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        if options.get("alpha", 1.0) != 1 or options.get("beta", 1.0) != 1 or options.get("transA", 0):
            raise _Refused("a scaled or transposed product")
        return self._product(node, bool(options.get("transB", 0)))

    def node_matmul(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._product(node, transposed=False)

    def _product(self, node: onnx.NodeProto, transposed: bool) -> str:
        rows = self.weights.get(node.input[1])
        if rows is None or rows.ndim != 2 or len(self.shapes[node.input[0]]) != 2:
            raise _Refused("a product of two maps, or attention")
        rows = rows if transposed else rows.T
        bias = self.weights[node.input[2]] if len(node.input) > 2 else None
        parameters: dict[str, Any] = {"num_output": len(rows)}
        if bias is None:
            parameters["bias_term"] = False
        layer = self._layer("InnerProduct", self._blob(node.input[0]), inner_product_param=parameters)
        return self._weigh(layer, rows, *([] if bias is None else [np.broadcast_to(bias.reshape(-1), (len(rows),))]))

    def node_batchnormalization(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        scale, shift, mean, variance = (self.weights[name].astype(np.float64) for name in node.input[1:5])
        factor = scale / np.sqrt(variance + options.get("epsilon", 1e-5))
        return self._scale(self._blob(node.input[0]), factor, shift - mean * factor)

    def node_instancenormalization(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        blob, shape = self._blob(node.input[0]), self.shapes[node.input[0]]
        centred = str(self._layer("MVN", blob, mvn_param={"normalize_variance": False}).top[0])
        squared = str(self._layer("Eltwise", centred, centred, eltwise_param={"operation": _PROD}).top[0])
        inverse = self._power(self._pooled(squared, "mean"), power=-0.5, shift=options.get("epsilon", 1e-5))
        normed = self._times(centred, inverse, (*shape[:2], 1, 1))
        return self._scale(normed, self.weights[node.input[1]], self.weights[node.input[2]])

    def node_relu(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return str(self._layer("ReLU", self._blob(node.input[0])).top[0])

    def node_sigmoid(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return str(self._layer("Sigmoid", self._blob(node.input[0])).top[0])

    def node_clip(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        low, high = ([*node.input[1:], "", ""])[:2]
        if not low or (high and math.isfinite(self._number(high))):
            raise _Refused("an upper bound")
        floor = self._number(low)
        above = self._layer("ReLU", self._power(self._blob(node.input[0]), shift=-floor)).top[0]
        return self._power(str(above), shift=floor)

    def node_pow(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._power(self._blob(node.input[0]), power=self._number(node.input[1]))

    def node_add(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._sum(node, 1)

    def node_sub(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._sum(node, -1)

    def _sum(self, node: onnx.NodeProto, sign: int) -> str:
        left, right = node.input
        if left in self.weights and sign == 1:
            left, right = right, left
        blob = self._blob(left)
        if right not in self.weights:
            if self.shapes[left] != self.shapes[right]:
                raise _Refused("a sum of different shapes")
            coefficients = {"coeff": [1.0, float(sign)]} if sign != 1 else {}
            parameters = {"operation": _SUM, **coefficients}
            return str(self._layer("Eltwise", blob, self._blob(right), eltwise_param=parameters).top[0])
        if self.weights[right].size == 1:
            return self._power(blob, shift=sign * self._number(right))
        shift = sign * self._channels(right, left)
        return self._scale(blob, np.ones_like(shift), shift)

    def node_mul(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        left, right = node.input
        if left in self.weights or (right not in self.weights and _size(self.shapes[left]) < _size(self.shapes[right])):
            left, right = right, left
        blob = self._blob(left)
        if right in self.weights:
            if self.weights[right].size == 1:
                return self._power(blob, scale=self._number(right))
            return self._scale(blob, self._channels(right, left))
        return self._product_of_blobs(blob, self._blob(right), self.shapes[left], self.shapes[right])

    def node_div(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        left, right = node.input
        blob = self._blob(left)
        if right in self.weights:
            if self.weights[right].size == 1:
                return self._power(blob, scale=1 / self._number(right))
            return self._scale(blob, 1 / self._channels(right, left))
        inverse = self._power(self._blob(right), power=-1)
        return self._product_of_blobs(blob, inverse, self.shapes[left], self.shapes[right])

    def _product_of_blobs(self, blob: str, other: str, shape: Sequence[int], by: Sequence[int]) -> str:
        if shape == by:
            return str(self._layer("Eltwise", blob, other, eltwise_param={"operation": _PROD}).top[0])
        if by[:2] != shape[:2] or any(size != 1 for size in by[2:]):
            raise _Refused("a product of different shapes")
        return self._times(blob, other, by)

    def node_maxpool(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._pool(node, options, "max")

    def node_averagepool(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        if any(options.get("pads", ())) and not options.get("count_include_pad", 0):
            raise _Refused("an average that leaves the padding out")
        return self._pool(node, options, "mean")

    def _pool(self, node: onnx.NodeProto, options: dict[str, Any], method: str) -> str:
        """Caffe rounds the size of the map up, and drops a window that would start in the padding: what is too much
        is cut off. The windows themselves are the same."""
        pads, kernel = options.get("pads", [0, 0, 0, 0]), options["kernel_shape"]
        strides, dilations = options.get("strides", [1, 1]), options.get("dilations", [1, 1])
        if len(kernel) != 2 or list(pads[:2]) != list(pads[2:]) or list(dilations) != [1, 1] or len(node.output) > 1:
            raise _Refused("padding that differs from side to side, or dilation")
        parameters = {
            "pool": _POOLS[method],
            "kernel_h": kernel[0],
            "kernel_w": kernel[1],
            "stride_h": strides[0],
            "stride_w": strides[1],
            "pad_h": pads[0],
            "pad_w": pads[1],
        }
        blob = str(self._layer("Pooling", self._blob(node.input[0]), pooling_param=parameters).top[0])
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        for axis in (2, 3):
            size = pooled_size(before[axis], kernel[axis - 2], strides[axis - 2], pads[axis - 2])
            if size < after[axis]:
                raise _Refused("a window that starts in the padding")
            blob = self._cropped(blob, axis, 0, after[axis], size)
        return blob

    def node_globalaveragepool(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._pooled(self._blob(node.input[0]), "mean")

    def node_globalmaxpool(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._pooled(self._blob(node.input[0]), "max")

    def node_reducemean(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._reduced(node, options, "mean")

    def node_reducemax(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        return self._reduced(node, options, "max")

    def _reduced(self, node: onnx.NodeProto, options: dict[str, Any], method: str) -> str:
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        axes = self.weights[node.input[1]].tolist() if len(node.input) > 1 else options.get("axes", ())
        if len(before) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
            raise _Refused("a reduction over anything but the positions of a map")
        blob = self._pooled(self._blob(node.input[0]), method)
        return blob if len(after) == 4 else self._reshaped(blob, after)

    def node_reshape(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        if before[0] != -1 or after[0] != -1 or -1 in after[1:]:
            raise _Refused("a shape that mixes the images of a batch")
        blob = self._blob(node.input[0])
        return blob if before == after else self._reshaped(blob, after)

    node_flatten = node_squeeze = node_unsqueeze = node_reshape

    def node_concat(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        blobs = [self._blob(name) for name in node.input]
        axis = options["axis"] % len(self.shapes[node.output[0]])
        if axis == 0:
            raise _Refused("joining the images of batches")
        return str(self._layer("Concat", *blobs, concat_param={"axis": axis}).top[0])

    def node_slice(self, node: onnx.NodeProto, options: dict[str, Any]) -> str:
        shape = self.shapes[node.input[0]]
        ranges: list[Any] = [self.weights.get(name) for name in node.input[1:]]
        if any(values is None for values in ranges):
            raise _Refused("a computed range")
        starts, stops = ranges[:2]
        axes = ranges[2] if len(ranges) > 2 else range(len(starts))
        steps = ranges[3] if len(ranges) > 3 else [1] * len(starts)
        blob = self._blob(node.input[0])
        for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
            axis %= len(shape)
            if axis == 0 or step != 1:
                raise _Refused("a range of images, or with steps")
            start, stop, _ = slice(start, stop).indices(shape[axis])
            blob = self._cropped(blob, axis, start, stop, shape[axis])
        return blob


def pooled_size(size: int, kernel: int, stride: int, pad: int) -> int:
    """Return the size of what Caffe pools: rounded up, less a window that would start behind the image."""
    pooled = -(-(size + 2 * pad - kernel) // stride) + 1
    return pooled - 1 if pad and (pooled - 1) * stride >= size + pad else pooled


_POOLS = {"max": 0, "mean": 1}
_PROD, _SUM = 0, 1


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)


def _size(shape: Sequence[int]) -> int:
    return abs(math.prod(shape))
