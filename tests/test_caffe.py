"""Caffe's files: what is written is read alike by OpenCV, by ours and by a slow reading of Caffe's rules."""

import itertools
import math

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from reidcore.errors import ContractError, RunError
from reidcore.export import About, open_artifact
from reidcore.export.caffe import outputs_of
from reidcore.export.caffe_reader import to_onnx
from reidcore.export.caffe_schema import net_class
from reidcore.export.caffe_writer import pooled_size, write_net

HEAD = 'name: "net"\nlayer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 %s } } }\n'
RANDOM = np.random.default_rng(0)


def parse(text: str, *shape: int, blobs: dict[str, list] | None = None):
    """Return a network of an input of (1, *shape) and layers, with weights by the layers' names."""
    net = text_format.Parse(HEAD % " ".join(f"dim: {size}" for size in shape) + text, net_class()())
    for layer in net.layer:
        for values in (blobs or {}).get(layer.name, ()):
            blob = layer.blobs.add()
            blob.shape.dim.extend(np.shape(values))
            blob.data.extend(np.ravel(values).astype(np.float32).tolist())
    return net


def ours(net, x: np.ndarray) -> list[np.ndarray]:
    """Run a network as the ONNX file that it becomes."""
    graph = to_onnx(net)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})


def opencv(net, x: np.ndarray, tmp_path) -> np.ndarray:
    """Run a network by OpenCV, from files."""
    cv2 = pytest.importorskip("cv2")
    bare = net_class()()
    bare.CopyFrom(net)
    for layer in bare.layer:
        del layer.blobs[:]
    (tmp_path / "net.prototxt").write_text(text_format.MessageToString(bare))
    (tmp_path / "net.caffemodel").write_bytes(net.SerializeToString())
    read = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    read.setInput(x.astype(np.float32))
    ((blob, layer),) = outputs_of(net).items()
    return read.forward(blob if blob in read.getLayerNames() else layer)


# the schema


def test_messages_have_caffes_field_numbers():
    """By hand: a LayerParameter (100 of NetParameter) has its name in 1, its type in 2, its blobs in 7; a blob has its
    data, packed, in 5 and its shape, a message with packed numbers in 1, in 7; convolution_param is 106."""
    blob = bytes([0x3A, 0x04, 0x0A, 0x02, 0x01, 0x02, 0x2A, 0x08]) + np.array([1, -2], np.float32).tobytes()
    convolution = b"\x08\x05" + b"\x10\x00" + b"\x20\x03"
    layer = b"\x0a\x01c" + b"\x12\x0bConvolution" + b"\x3a" + bytes([len(blob)]) + blob
    layer += b"\xd2\x06" + bytes([len(convolution)]) + convolution
    net = net_class()()
    net.ParseFromString(b"\x0a\x03net" + b"\xa2\x06" + bytes([len(layer)]) + layer)
    (found,) = net.layer
    assert (net.name, found.name, found.type) == ("net", "c", "Convolution")
    assert (list(found.blobs[0].shape.dim), list(found.blobs[0].data)) == ([1, 2], [1.0, -2.0])
    parameter = found.convolution_param
    assert (parameter.num_output, parameter.bias_term, list(parameter.kernel_size)) == (5, False, [3])
    assert net.SerializeToString(deterministic=True)


def test_what_is_not_said_is_caffes_default():
    layer = net_class()().layer.add()
    assert layer.convolution_param.bias_term and layer.convolution_param.group == 1
    assert layer.batch_norm_param.eps == pytest.approx(1e-5) and layer.mvn_param.eps == pytest.approx(1e-9)
    assert (layer.pooling_param.pool, layer.eltwise_param.operation, layer.exp_param.base) == (0, 1, -1)
    assert (layer.scale_param.axis, layer.scale_param.bias_term, layer.concat_param.axis) == (1, False, 1)


# pooling


def slow_pooling(x: np.ndarray, kernel: int, stride: int, pad: int, method: str) -> np.ndarray:
    """Pool (H, W) as Caffe's pooling_layer.cpp does, window by window."""
    height, width = (math.ceil((size + 2 * pad - kernel) / stride) + 1 for size in x.shape)
    if pad:
        height -= (height - 1) * stride >= x.shape[0] + pad
        width -= (width - 1) * stride >= x.shape[1] + pad
    found = np.empty((height, width), np.float32)
    for row, column in itertools.product(range(height), range(width)):
        top, left = row * stride - pad, column * stride - pad
        bottom, right = min(top + kernel, x.shape[0] + pad), min(left + kernel, x.shape[1] + pad)
        divisor = (bottom - top) * (right - left)
        window = x[max(top, 0) : min(bottom, x.shape[0]), max(left, 0) : min(right, x.shape[1])]
        found[row, column] = window.max() if method == "MAX" else window.sum() / divisor
    return found


sizes = st.tuples(st.integers(4, 12), st.integers(4, 12))


@settings(max_examples=60, deadline=None)
@given(
    size=sizes,
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    method=st.sampled_from(["MAX", "AVE"]),
)
def test_pooling_rounds_up_as_caffe_does(size, kernel, stride, pad, method):
    if pad >= kernel:
        return
    x = np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)
    text = (
        f'layer {{ name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param {{ pool: {method} '
        f"kernel_size: {kernel} stride: {stride} pad: {pad} }} }}"
    )
    if any((pooled_size(length, kernel, stride, pad) - 1) * stride - pad >= length for length in size):
        with pytest.raises(ContractError, match="a window would lie outside"):
            to_onnx(parse(text, 3, *size))
        return
    expected = np.stack([[slow_pooling(map, kernel, stride, pad, method) for map in image] for image in x])
    (found,) = ours(parse(text, 3, *size), x)
    assert found.shape[2:] == tuple(pooled_size(length, kernel, stride, pad) for length in size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 5), (16, 11)])
@pytest.mark.parametrize(
    ("operation", "options"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ],
)
def test_a_written_pool_gives_the_same_map(operation, options, size, tmp_path):
    check([helper.make_node(operation, ["x"], ["y"], "m.pool.Pool", **options)], (2, *size), tmp_path)


# writing


def graph_of(nodes, shape, weights=()):
    """Return a graph of (N, H, W, C) images whose nodes get (N, C, H, W) as "x" and give "y"."""
    channels, height, width = shape
    first = [
        helper.make_node("Transpose", ["images"], ["t"], "Transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["x"], "Cast", to=TensorProto.FLOAT),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", height, width, channels])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    arrays = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights]
    graph = helper.make_graph([*first, *nodes], "net", [given], [out], arrays)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )


def check(nodes, shape, tmp_path, weights=()):
    """Compare a graph in ONNX Runtime with the network of Caffe by OpenCV, and by our own reader."""
    graph = graph_of(nodes, shape, weights)
    images = np.random.default_rng(2).integers(0, 256, (3, *shape[1:], shape[0])).astype(np.uint8)
    (expected,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"images": images})
    net = write_net(graph)
    net.layer[0].input_param.shape[0].dim[1] = shape[0]
    x = images.transpose(0, 3, 1, 2)
    scale = np.abs(expected).max() + 1e-12
    for name, found in (("opencv", opencv(net, x, tmp_path)), ("ours", ours(net, x)[0])):
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found / scale, expected / scale, atol=2e-6, err_msg=name)


def node(operation, *inputs, **options):
    return helper.make_node(operation, list(inputs), ["y"], f"m.layer.{operation}", **options)


F = np.float32
WRITTEN = {
    "clip": ([node("Clip", "x", "low")], [("low", F(40))]),
    "power": ([node("Pow", "x", "p")], [("p", F(0.5))]),
    "a number for each channel": ([node("Sub", "x", "c")], [("c", np.arange(4, dtype=F).reshape(1, 4, 1, 1))]),
    "a factor for each channel": ([node("Mul", "x", "c")], [("c", np.arange(1, 5, dtype=F).reshape(4, 1, 1))]),
    "a divisor for each channel": ([node("Div", "x", "c")], [("c", np.arange(1, 5, dtype=F).reshape(4, 1, 1))]),
    "numbers": (
        [
            helper.make_node("Mul", ["two", "x"], ["a"], "m.a.Mul"),
            helper.make_node("Add", ["a", "two"], ["b"], "m.a.Add"),
            node("Div", "b", "two"),
        ],
        [("two", F(2))],
    ),
    "a range of channels": (
        [node("Slice", "x", "start", "stop", "axis")],
        [("start", [1]), ("stop", [3]), ("axis", [1])],
    ),
    "a range to the end": (
        [node("Slice", "x", "start", "stop", "axis")],
        [("start", [-2]), ("stop", [999]), ("axis", [2])],
    ),
    "everything": ([node("Slice", "x", "start", "stop", "axis")], [("start", [0]), ("stop", [999]), ("axis", [3])]),
    "ranges of two axes": (
        [node("Slice", "x", "start", "stop", "axis")],
        [("start", [0, 2]), ("stop", [2, 5]), ("axis", [2, 3])],
    ),
    "flat": ([node("Flatten", "x", axis=1)], []),
    "another shape": ([node("Reshape", "x", "shape")], [("shape", [0, 2, 2, -1])]),
    "mean, kept": ([node("ReduceMean", "x", "axes", keepdims=1)], [("axes", [2, 3])]),
    "maximum, dropped": ([node("ReduceMax", "x", "axes", keepdims=0)], [("axes", [-1, -2])]),
    "a difference of maps": ([helper.make_node("Relu", ["x"], ["a"], "m.a.Relu"), node("Sub", "x", "a")], []),
    "a quotient by what each channel has": (
        [helper.make_node("GlobalMaxPool", ["x"], ["a"], "m.a.Pool"), node("Div", "x", "a")],
        [],
    ),
    "an instance norm of almost nothing": (
        [
            helper.make_node("Mul", ["x", "tiny"], ["a"], "m.a.Mul"),
            node("InstanceNormalization", "a", "scale", "shift", epsilon=1e-5),
        ],
        [("tiny", F(1e-5)), ("scale", np.arange(1, 5, dtype=F)), ("shift", np.ones(4, F))],
    ),
    "a convolution with everything": (
        [node("Conv", "x", "w", "b", group=2, strides=[1, 2], pads=[2, 1, 2, 1], dilations=[2, 1])],
        [("w", RANDOM.normal(size=(6, 2, 3, 3)).astype(F)), ("b", RANDOM.normal(size=6).astype(F))],
    ),
    "a product with a bias": (
        [helper.make_node("Flatten", ["x"], ["a"], "m.a.Flatten", axis=1), node("Gemm", "a", "w", "b", transB=1)],
        [("w", RANDOM.normal(size=(5, 4 * 6 * 5)).astype(F)), ("b", RANDOM.normal(size=5).astype(F))],
    ),
}


@pytest.mark.parametrize(("nodes", "weights"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_is_read_alike(nodes, weights, tmp_path):
    check(nodes, (4, 6, 5), tmp_path, weights)


REFUSED = {
    "an upper bound": ([node("Clip", "x", "", "high")], [("high", F(6))], "an upper bound (Clip)"),
    "softmax": ([node("Softmax", "x", axis=1)], [], "this operation (Softmax)"),
    "a product of maps": ([node("MatMul", "x", "x")], [], "a product of two maps, or attention (MatMul)"),
    "one side": (
        [node("Conv", "x", "w", pads=[0, 0, 1, 1])],
        [("w", np.ones((1, 4, 2, 2), F))],
        "padding that differs from side to side (Conv)",
    ),
    "a map of constants": (
        [node("Add", "x", "c")],
        [("c", np.ones((1, 4, 6, 5), F))],
        "differs from place to place (Add)",
    ),
    "rows": ([node("ReduceMean", "x", "axes")], [("axes", [2])], "anything but the positions of a map (ReduceMean)"),
    "images": ([node("Concat", "x", "x", axis=0)], [], "joining the images of batches (Concat)"),
    "steps": (
        [node("Slice", "x", "zero", "end", "axis", "step")],
        [("zero", [0]), ("end", [9]), ("axis", [2]), ("step", [2])],
        "a range of images, or with steps (Slice)",
    ),
    "the mean without the padding": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        [],
        "an average that leaves the padding out (AveragePool)",
    ),
}


@pytest.mark.parametrize(("nodes", "weights", "message"), REFUSED.values(), ids=REFUSED)
def test_what_caffe_has_no_layer_for_is_refused_by_name(nodes, weights, message):
    with pytest.raises(ContractError) as caught:
        write_net(graph_of(nodes, (4, 6, 5), weights))
    assert str(caught.value).startswith("Caffe has no layer for 'm.layer': it cannot express ")
    assert str(caught.value).endswith(message)


# reading


def layer(kind: str, parameters: str = "", bottoms: str = 'bottom: "data"', tops: str = 'top: "y"') -> str:
    return f'layer {{ name: "l" type: "{kind}" {bottoms} {tops} {parameters} }}\n'


X = RANDOM.normal(size=(3, 4, 6, 5)).astype(F)
W, B = RANDOM.normal(size=(6, 2, 3, 3)).astype(F), RANDOM.normal(size=6).astype(F)
COLUMN = np.arange(1, 5, dtype=F).reshape(1, 4, 1, 1)


def centred(axes) -> np.ndarray:
    return X - X.mean(axes, keepdims=True)


READ = {
    "relu": (layer("ReLU", "relu_param { negative_slope: 0.1 }"), [], np.where(X > 0, X, 0.1 * X)),
    "prelu": (layer("PReLU"), [COLUMN.ravel()], np.where(X > 0, X, COLUMN * X)),
    "elu": (layer("ELU", "elu_param { alpha: 2 }"), [], np.where(X > 0, X, 2 * np.expm1(X))),
    "sigmoid": (layer("Sigmoid"), [], 1 / (1 + np.exp(-X))),
    "tanh": (layer("TanH"), [], np.tanh(X)),
    "absval": (layer("AbsVal"), [], np.abs(X)),
    "dropout": (layer("Dropout", "dropout_param { dropout_ratio: 0.5 }"), [], X),
    "softmax": (layer("Softmax"), [], np.exp(X) / np.exp(X).sum(1, keepdims=True)),
    "power": (layer("Power", "power_param { power: 2 scale: 3 shift: 1 }"), [], (1 + 3 * X) ** 2),
    "exp": (layer("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }"), [], 2 ** (1 + 0.5 * X)),
    "exp of e": (layer("Exp"), [], np.exp(X)),
    "batch norm": (
        layer("BatchNorm", "batch_norm_param { eps: 0.1 }"),
        [2 * COLUMN.ravel(), 4 * COLUMN.ravel(), [2.0]],  # sums, and what they are to be divided by
        (X - COLUMN) / np.sqrt(2 * COLUMN + 0.1),
    ),
    "scale": (
        layer("Scale", "scale_param { bias_term: true }"),
        [COLUMN.ravel(), -COLUMN.ravel()],
        X * COLUMN - COLUMN,
    ),
    "scale of an axis": (
        layer("Scale", "scale_param { axis: 2 }"),
        [np.arange(6, dtype=F)],
        X * np.arange(6).reshape(1, 1, 6, 1),
    ),
    "bias": (layer("Bias"), [COLUMN.ravel()], X + COLUMN),
    "mvn": (
        layer("MVN", "mvn_param { eps: 0.5 }"),
        [],
        centred((2, 3)) / (X.std((2, 3), keepdims=True) + 0.5),  # to the deviation, not to the variance
    ),
    "mvn of all channels": (
        layer("MVN", "mvn_param { normalize_variance: false across_channels: true }"),
        [],
        centred((1, 2, 3)),
    ),
    "flatten": (layer("Flatten"), [], X.reshape(3, -1)),
    "flatten to an axis": (layer("Flatten", "flatten_param { end_axis: 2 }"), [], X.reshape(3, 24, 5)),
    "reshape": (
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 5 } }"),
        [],
        X.reshape(3, 2, 12, 5),
    ),
    "reshape of some axes": (
        layer("Reshape", "reshape_param { shape { dim: 2 dim: 2 } axis: 1 num_axes: 1 }"),
        [],
        X.reshape(3, 2, 2, 6, 5),
    ),
    "reshape for one image": (layer("Reshape", "reshape_param { shape { dim: 1 dim: 120 } }"), [], X.reshape(3, 120)),
    "lrn": (
        layer("LRN", "lrn_param { local_size: 3 alpha: 0.3 beta: 0.75 }"),
        [],
        X / (1 + 0.3 / 3 * sum(np.pad(X**2, ((0, 0), (1, 1), (0, 0), (0, 0)))[:, i : i + 4] for i in range(3))) ** 0.75,
    ),
    "inner product": (
        layer("InnerProduct", "inner_product_param { num_output: 2 }"),
        [np.arange(240, dtype=F).reshape(2, 120), [1.0, 2.0]],
        X.reshape(3, -1) @ np.arange(240).reshape(2, 120).T + [1, 2],
    ),
    "inner product, transposed": (
        layer("InnerProduct", "inner_product_param { num_output: 2 bias_term: false transpose: true }"),
        [np.arange(240, dtype=F).reshape(120, 2)],
        X.reshape(3, -1) @ np.arange(240).reshape(120, 2),
    ),
    "sum with weights": (
        layer("Eltwise", "eltwise_param { coeff: 2 coeff: -1 }", 'bottom: "data" bottom: "data"'),
        [],
        X,
    ),
    "product": (layer("Eltwise", "eltwise_param { operation: PROD }", 'bottom: "data" bottom: "data"'), [], X * X),
    "concat": (layer("Concat", "", 'bottom: "data" bottom: "data"'), [], np.concatenate([X, X], 1)),
    "concat along an axis": (
        layer("Concat", "concat_param { axis: 3 }", 'bottom: "data" bottom: "data"'),
        [],
        np.concatenate([X, X], 3),
    ),
    "global pooling": (
        layer("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
        [],
        X.mean((2, 3), keepdims=True),
    ),
    "pooling that rounds down": (
        layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 round_mode: FLOOR }"),
        [],
        X[:, :, :, :4].reshape(3, 4, 3, 2, 2, 2).max((3, 5)),
    ),
    "convolution of one position": (
        layer("Convolution", "convolution_param { num_output: 6 kernel_size: 1 }"),
        [W.reshape(-1)[:24].reshape(6, 4, 1, 1), B],
        np.einsum("oc,nchw->nohw", W.reshape(-1)[:24].reshape(6, 4), X) + B.reshape(1, 6, 1, 1),
    ),
}
NOT_OPENCV = ("bias", "exp", "inner product, transposed", "mvn", "pooling that rounds down", "reshape for one image")
"""OpenCV computes something else, or nothing: another epsilon, no base, no rounding mode."""


@pytest.mark.parametrize("name", READ)
def test_a_layer_computes_what_caffe_says(name, tmp_path):
    text, blobs, expected = READ[name]
    net = parse(text, 4, 6, 5, blobs={"l": blobs})
    (found,) = ours(net, X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if name not in NOT_OPENCV:
        np.testing.assert_allclose(opencv(net, X, tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_write_in_place_and_several_outputs(tmp_path):
    text = (
        'layer { name: "r" type: "ReLU" bottom: "data" top: "data" }\n'
        'layer { name: "s" type: "Split" bottom: "data" top: "a" top: "b" }\n'
        'layer { name: "p" type: "Power" bottom: "a" top: "a" power_param { shift: 1 } }\n'
        'layer { name: "c" type: "Slice" bottom: "b" top: "c" top: "d" top: "e" '
        "slice_param { axis: 1 slice_point: 1 slice_point: 3 } }\n"
        'layer { name: "q" type: "Silence" bottom: "d" }\n'
    )
    graph = to_onnx(parse(text, 4, 6, 5))
    assert [value.name for value in graph.graph.output] == ["a", "c", "e"]
    a, c, e = ours(parse(text, 4, 6, 5), X)
    positive = np.maximum(X, 0)
    for found, expected in ((a, positive + 1), (c, positive[:, :1]), (e, positive[:, 3:])):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_inputs_and_blobs_of_older_files_are_read():
    old = (
        'name: "old"\ninput: "data"\ninput_dim: 1\ninput_dim: 4\ninput_dim: 6\ninput_dim: 5\n'
        'layer { name: "t" type: "Dropout" bottom: "data" top: "x" include { phase: TRAIN } }\n'
        + layer("InnerProduct", "inner_product_param { num_output: 2 }")
    )
    net = text_format.Parse(old, net_class()())
    rows = RANDOM.normal(size=(2, 120)).astype(F)
    for values, shape in ((rows, (1, 1, 2, 120)), (np.array([1, 2], F), (1, 1, 1, 2))):
        blob = net.layer[1].blobs.add(num=shape[0], channels=shape[1], height=shape[2], width=shape[3])
        blob.data.extend(values.ravel().tolist())
    np.testing.assert_allclose(ours(net, X)[0], X.reshape(3, -1) @ rows.T + [1, 2], rtol=1e-4, atol=1e-4)


BAD = {
    "an unknown layer": (layer("Deconvolution"), "layer 'l': layers of type Deconvolution are not known"),
    "an unknown blob": (layer("ReLU", bottoms='bottom: "dta"'), "layer 'l': there is no blob 'dta'"),
    "no weights": (
        layer("InnerProduct", "inner_product_param { num_output: 2 }"),
        "layer 'l': it lacks weights",
    ),
    "a batch in channels": (layer("Flatten", "flatten_param { axis: 0 }"), "layer 'l': it mixes the images of a batch"),
    "images joined": (
        layer("Concat", "concat_param { axis: 0 }", 'bottom: "data" bottom: "data"'),
        "layer 'l': it joins the images of batches",
    ),
    "two blobs for one": (layer("ReLU", bottoms='bottom: "data" bottom: "data"'), "layer 'l': its blobs, weights and"),
    "a stride of nothing": (layer("Pooling", "pooling_param { kernel_size: 2 stride: 0 }"), "layer 'l': its blobs,"),
    "a base below nothing": (layer("Exp", "exp_param { base: -2 }"), "layer 'l': its blobs, weights and options do"),
    "a coefficient too many": (
        layer("Eltwise", "eltwise_param { coeff: 1 coeff: 2 coeff: 3 }", 'bottom: "data" bottom: "data"'),
        "layer 'l': its blobs, weights and options do not fit together",
    ),
    "a cut past the end": (
        layer("Slice", "slice_param { slice_point: 9 }", tops='top: "y" top: "z"'),
        "layer 'l': it cuts 4 at 9",
    ),
    "another number of values": (
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 7 } }"),
        "layer 'l': (4, 6, 5) cannot be given the shape (7,)",
    ),
    "maps of two sizes": (
        layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", tops='top: "p"')
        + layer("Concat", "", 'bottom: "data" bottom: "p"'),
        "layer 'l': its blobs have different shapes",
    ),
    "stochastic": (
        layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        "layer 'l': stochastic pooling",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_not_understood_is_refused_by_name(text, message):
    with pytest.raises(ContractError) as caught:
        to_onnx(parse(text, 4, 6, 5))
    assert str(caught.value).startswith(message)


def test_an_input_without_a_size_is_told():
    for text in ('input: "data"', 'layer { name: "data" type: "Input" top: "data" }'):
        with pytest.raises(ContractError, match="the network does not say how large its input 'data' is"):
            to_onnx(text_format.Parse(text, net_class()()))


def test_what_is_for_training_only_is_left_out():
    text = (
        layer("Dropout", "exclude { phase: TEST }", tops='top: "data"')
        + layer("Power", "power_param { shift: 1 } include { phase: TRAIN }", tops='top: "data"')
        + layer("ReLU", "include { phase: TEST }", tops='top: "data"')
    )
    graph = to_onnx(parse(text, 4, 6, 5))
    assert [value.name for value in graph.graph.output] == ["data_out"]  # written in the place of the input
    np.testing.assert_array_equal(ours(parse(text, 4, 6, 5), X)[0], np.maximum(X, 0))


def test_outputs_that_are_read_or_shared_are_outputs_all_the_same(tmp_path):
    cv2 = pytest.importorskip("cv2")
    nodes = [
        helper.make_node("Relu", ["x"], ["map"], "m.a.Relu"),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"], "m.b.Pool"),
        helper.make_node("Identity", ["pooled"], ["y"], "m.c.Identity"),
    ]
    graph = graph_of(nodes, (3, 6, 5))
    for name in ("map", "pooled"):
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    net = write_net(onnx.shape_inference.infer_shapes(graph))
    assert list(outputs_of(net)) == ["y", "map", "pooled"]
    (tmp_path / "n.prototxt").write_text(text_format.MessageToString(net))
    (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
    read = cv2.dnn.readNetFromCaffe(str(tmp_path / "n.prototxt"), str(tmp_path / "n.caffemodel"))
    x = X[:, :3]
    read.setInput(x)
    y, map, pooled = read.forward(["y", "map", "pooled"])
    np.testing.assert_allclose(map, np.maximum(x, 0))
    np.testing.assert_allclose(y, map.mean((2, 3), keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(y, pooled)


def test_files_that_are_not_caffes_are_told(tmp_path, reidcore):
    net, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    out = tmp_path / "net.onnx"

    def said() -> str:
        status, _, err = reidcore("import", net, "--from", "caffe", "-o", out)
        assert status == 2 and not out.exists()
        return err

    assert "cannot read" in said() and "net.prototxt" in said()
    net.write_text(HEAD % "dim: 4 dim: 6 dim: 5" + 'layer { name: "x" type: "ReLU" relu_parm { } }')
    assert "net.prototxt:3" in said() and "relu_parm" in said()
    net.write_text(HEAD % "dim: 4 dim: 6 dim: 5")
    assert "cannot read" in said() and "net.caffemodel" in said()
    weights.write_bytes(b"")
    net.write_text('name: "x"\nlayers { name: "y" type: RELU }')
    assert "is written as Caffe did in 2014 ('layers')" in said()
    net.write_text('name: "x"')
    assert "says nothing of its input" in said()
    weights.write_bytes(b"\xff\xff\xff")
    assert "holds no weights of Caffe" in said()


# ours, there and back


def test_an_exported_model_comes_back_as_onnx(tmp_path, reidcore):
    pytest.importorskip("cv2")
    from reidcore import load_model
    from reidcore.catalog import Catalog
    from reidcore.testing import tiny_recipe

    backbone = {"name": "resnet18", "base": 16, "ibn": "a", "se": True, "weights": "none"}
    recipe = tiny_recipe(tmp_path, export=[{"name": "caffe"}], backbone=backbone)
    assert reidcore("run", recipe, "-q").status == 0
    run = tmp_path / "runs" / "toy"
    file = run / "export" / "caffe" / "model.prototxt"
    head = file.read_text()[:200]
    assert head.startswith("# Input 'data': RGB (not BGR) pixel values in 0..255, any number of images of 32x16.\n")
    status, out, err = reidcore("import", file, "--from", "caffe", "-o", tmp_path / "back.onnx")
    assert (status, err) == (0, "")
    assert out.endswith("takes 'images' batchx32x16x3; gives 'embedding' batchx128\n")
    about = open_artifact(file, Catalog.of()).about
    assert isinstance(about, About) and about == open_artifact(tmp_path / "back.onnx", Catalog.of()).about
    images = sorted((tmp_path / "toy" / "gallery").iterdir())
    expected = load_model(run).embed(images)
    for model in (file, tmp_path / "back.onnx"):
        np.testing.assert_allclose(load_model(model).embed(images), expected, rtol=1e-3, atol=1e-4)
    plain = reidcore("evaluate", run).out
    assert reidcore("evaluate", run, "--artifact", file).out == plain


def test_without_opencv_it_says_what_is_missing(monkeypatch, tmp_path, reidcore):
    import sys

    from reidcore.testing import tiny_recipe

    monkeypatch.setitem(sys.modules, "cv2", None)
    status, _, err = reidcore("run", tiny_recipe(tmp_path, export=[{"name": "caffe"}]))
    assert status == 2 and 'pip install "reidcore[caffe]"' in err
    assert not (tmp_path / "runs" / "toy").exists()


def test_a_missing_half_is_told(tmp_path):
    from reidcore.catalog import Catalog

    (tmp_path / "a.prototxt").write_text("")
    with pytest.raises(RunError, match=r"there is no file .*a\.caffemodel"):
        open_artifact(tmp_path / "a.prototxt", Catalog.of())
