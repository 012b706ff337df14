"""The part of Caffe's message definitions that networks for inference are written in, by its field numbers.

Caffe's own: https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# A field is number, name, type, "+" if it is repeated and "*" if it is repeated and packed, and its default.
_MESSAGES = {
    "BlobShape": "1 dim int64*",
    "BlobProto": "1 num int32 =0, 2 channels int32 =0, 3 height int32 =0, 4 width int32 =0, 5 data float*, "
    "7 shape BlobShape, 8 double_data double*",
    "FillerParameter": "1 type string =constant, 2 value float =0, 3 min float =0, 4 max float =1, 5 mean float =0, "
    "6 std float =1, 7 sparse int32 =-1, 8 variance_norm VarianceNorm =FAN_IN",
    "NetParameter": "1 name string, 2 layers V1LayerParameter+, 3 input string+, 4 input_dim int32+, "
    "5 force_backward bool =false, 6 state NetState, 7 debug_info bool =false, 8 input_shape BlobShape+, "
    "100 layer LayerParameter+",
    "V1LayerParameter": "",  # of 2014; only told from what is read
    "NetState": "1 phase Phase =TEST, 2 level int32 =0, 3 stage string+",
    "NetStateRule": "1 phase Phase, 2 min_level int32, 3 max_level int32, 4 stage string+, 5 not_stage string+",
    "ParamSpec": "1 name string, 2 share_mode DimCheckMode, 3 lr_mult float =1, 4 decay_mult float =1",
    "LayerParameter": "1 name string, 2 type string, 3 bottom string+, 4 top string+, 5 loss_weight float+, "
    "6 param ParamSpec+, 7 blobs BlobProto+, 8 include NetStateRule+, 9 exclude NetStateRule+, 10 phase Phase, "
    "11 propagate_down bool+, 104 concat_param ConcatParameter, 106 convolution_param ConvolutionParameter, "
    "108 dropout_param DropoutParameter, 110 eltwise_param EltwiseParameter, 111 exp_param ExpParameter, "
    "117 inner_product_param InnerProductParameter, 118 lrn_param LRNParameter, 120 mvn_param MVNParameter, "
    "121 pooling_param PoolingParameter, 122 power_param PowerParameter, 123 relu_param ReLUParameter, "
    "124 sigmoid_param SigmoidParameter, 125 softmax_param SoftmaxParameter, 126 slice_param SliceParameter, "
    "127 tanh_param TanHParameter, 131 prelu_param PReLUParameter, 133 reshape_param ReshapeParameter, "
    "135 flatten_param FlattenParameter, 139 batch_norm_param BatchNormParameter, 140 elu_param ELUParameter, "
    "141 bias_param BiasParameter, 142 scale_param ScaleParameter, 143 input_param InputParameter",
    "BatchNormParameter": "1 use_global_stats bool, 2 moving_average_fraction float =0.999, 3 eps float =1e-5",
    "BiasParameter": "1 axis int32 =1, 2 num_axes int32 =1, 3 filler FillerParameter",
    "ConcatParameter": "1 concat_dim uint32 =1, 2 axis int32 =1",
    "ConvolutionParameter": "1 num_output uint32, 2 bias_term bool =true, 3 pad uint32+, 4 kernel_size uint32+, "
    "5 group uint32 =1, 6 stride uint32+, 7 weight_filler FillerParameter, 8 bias_filler FillerParameter, "
    "9 pad_h uint32 =0, 10 pad_w uint32 =0, 11 kernel_h uint32, 12 kernel_w uint32, 13 stride_h uint32, "
    "14 stride_w uint32, 15 engine Engine =DEFAULT, 16 axis int32 =1, 17 force_nd_im2col bool =false, "
    "18 dilation uint32+",
    "DropoutParameter": "1 dropout_ratio float =0.5",
    "EltwiseParameter": "1 operation EltwiseOp =SUM, 2 coeff float+, 3 stable_prod_grad bool =true",
    "ELUParameter": "1 alpha float =1",
    "ExpParameter": "1 base float =-1, 2 scale float =1, 3 shift float =0",
    "FlattenParameter": "1 axis int32 =1, 2 end_axis int32 =-1",
    "InnerProductParameter": "1 num_output uint32, 2 bias_term bool =true, 3 weight_filler FillerParameter, "
    "4 bias_filler FillerParameter, 5 axis int32 =1, 6 transpose bool =false",
    "InputParameter": "1 shape BlobShape+",
    "LRNParameter": "1 local_size uint32 =5, 2 alpha float =1, 3 beta float =0.75, 4 norm_region NormRegion "
    "=ACROSS_CHANNELS, 5 k float =1, 6 engine Engine =DEFAULT",
    "MVNParameter": "1 normalize_variance bool =true, 2 across_channels bool =false, 3 eps float =1e-9",
    "PReLUParameter": "1 filler FillerParameter, 2 channel_shared bool =false",
    "PoolingParameter": "1 pool PoolMethod =MAX, 2 kernel_size uint32, 3 stride uint32 =1, 4 pad uint32 =0, "
    "5 kernel_h uint32, 6 kernel_w uint32, 7 stride_h uint32, 8 stride_w uint32, 9 pad_h uint32 =0, "
    "10 pad_w uint32 =0, 11 engine Engine =DEFAULT, 12 global_pooling bool =false, 13 round_mode RoundMode =CEIL",
    "PowerParameter": "1 power float =1, 2 scale float =1, 3 shift float =0",
    "ReLUParameter": "1 negative_slope float =0, 2 engine Engine =DEFAULT",
    "ReshapeParameter": "1 shape BlobShape, 2 axis int32 =0, 3 num_axes int32 =-1",
    "ScaleParameter": "1 axis int32 =1, 2 num_axes int32 =1, 3 filler FillerParameter, 4 bias_term bool =false, "
    "5 bias_filler FillerParameter",
    "SigmoidParameter": "1 engine Engine =DEFAULT",
    "SliceParameter": "1 slice_dim uint32 =1, 2 slice_point uint32+, 3 axis int32 =1",
    "SoftmaxParameter": "1 engine Engine =DEFAULT, 2 axis int32 =1",
    "TanHParameter": "1 engine Engine =DEFAULT",
}
_ENUMS = {
    "DimCheckMode": "STRICT PERMISSIVE",
    "EltwiseOp": "PROD SUM MAX",
    "Engine": "DEFAULT CAFFE CUDNN",
    "NormRegion": "ACROSS_CHANNELS WITHIN_CHANNEL",
    "Phase": "TRAIN TEST",
    "PoolMethod": "MAX AVE STOCHASTIC",
    "RoundMode": "CEIL FLOOR",
    "VarianceNorm": "FAN_IN FAN_OUT AVERAGE",
}
_FIELD = re.compile(r"(\d+) (\w+) (\w+)([*+]?)(?: =([^\s,]+))?")
_PACKAGE = "caffe"


@cache
def net_class() -> Any:
    """Return the message class of a network, `NetParameter`: with layers, and with their weights, or without."""
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package=_PACKAGE, syntax="proto2")
    for name, values in _ENUMS.items():
        # values are known by name in the whole package, so each enum stands in a message of its own
        enum = file.message_type.add(name=f"{name}s").enum_type.add(name=name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for name, text in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, label, kind, many, default in _FIELD.findall(text):
            field = message.field.add(name=label, number=int(number))
            field.label = Field.LABEL_REPEATED if many else Field.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            elif kind in _ENUMS:
                field.type, field.type_name = Field.TYPE_ENUM, f".{_PACKAGE}.{kind}s.{kind}"
            else:
                field.type = getattr(Field, f"TYPE_{kind.upper()}")
            if default:
                field.default_value = default
            field.options.packed = many == "*"
    pool = descriptor_pool.DescriptorPool()  # a program may hold Caffe's own definitions as well
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.NetParameter"))
