"""Operations that only video models have: three dimensions, RMS norms, pairs of channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from onnx import helper
from torch import fx

from intsr.errors import ExportError
from intsr.export.lower.context import LoweringContext, Value, argument, lowers, shape_of
from intsr.export.lower.write.borders import Window
from intsr.export.lower.write.layers import write_convolution
from intsr.export.onnx.builder import GraphBuilder
from intsr.targets.lowering import STATISTICS

aten: Any = torch.ops.aten


@lowers(aten.conv3d.default)
def conv3d(net: LoweringContext, node: fx.Node) -> Value:
    x, weight = node.args[:2]
    site = net.site_of(weight)
    strides, padding, dilations = (
        [int(side) for side in argument(node, 3 + i, key, default)]
        for i, (key, default) in enumerate((("stride", [1] * 3), ("padding", [0] * 3), ("dilation", [1] * 3)))
    )
    layer, bias, zeros, taps = net.layers.get(site), net.bias_of(site), _zeros_in_front(x), slice(None)
    if zeros > 0 and zeros + 1 == shape_of(weight)[2] == shape_of(x)[2]:
        # A film's first frame: all taps but the last meet zeros.
        x, taps = x.args[0], slice(-1, None)
    value, group = net.value(x), int(argument(node, 6, "groups", 1))
    attributes: dict[str, Any] = {"strides": strides, "pads": padding * 2, "dilations": dilations, "group": group}
    if layer is not None:
        if padding[0] or group != 1:
            raise ExportError(site, f"a convolution of frames, {padding[0]} padded, {group} groups", "none, and one")
        layer = replace(layer, weight_codes=layer.weight_codes[:, :, taps])
        count, height, width = layer.weight_codes.shape[2:]
        (rows, columns), (_, tall, wide) = shape_of(x)[3:], padding
        window = Window(
            (height, width),
            (rows, columns),
            (strides[1], strides[2]),
            (dilations[1], dilations[2]),
            (tall, wide, tall, wide),
            frames=(count, strides[0], dilations[0]),
        )
        return write_convolution(net, value, layer, window, bias)
    kernel = net.parameter(weight)[:, :, taps]
    inputs = [value, net.builder.constant(f"{site}.weight", kernel)]
    if bias is not None:
        inputs.append(net.builder.constant(f"{site}.bias", bias))
    return net.builder.op("Conv", inputs, site, kernel_shape=kernel.shape[2:], **attributes)


def _zeros_in_front(node: fx.Node) -> int:
    """How many frames of zeros the node puts in front of its input; 0 where it does anything else."""
    if node.target is not aten.pad.default or argument(node, 3, "value", None):
        return 0
    *sides, front, behind = node.args[1]
    plain = not any(sides) and behind == 0 and argument(node, 2, "mode", "constant") == "constant"
    return int(front) if plain and len(sides) == 4 else 0


@lowers(aten.rms_norm.default)
def rms_norm(net: LoweringContext, node: fx.Node) -> Value:
    """w x / sqrt(mean(x^2) + eps) over the last dimension."""
    x, normalized, weight, epsilon = node.args[:4]
    if len(normalized) != 1 or epsilon is None:
        raise ExportError(node.name, f"RMSNorm over {list(normalized)} with eps {epsilon}", "one dimension, a number")
    b, value, name = net.builder, net.value(x), f"{net.site_of(weight)}{STATISTICS}"
    wide, axes = _cast(b, value, np.float32, f"{name}wide"), b.constant(f"{name}axes", [-1])
    mean = b.op("ReduceMean", [b.op("Mul", [wide, wide], f"{name}square"), axes], f"{name}mean", keepdims=1)
    epsilon_value = _cast(b, b.constant(f"{name}eps", np.float32(epsilon)), np.float32, f"{name}wide_eps")
    root = b.op("Sqrt", [b.op("Add", [mean, epsilon_value], f"{name}sum")], f"{name}root")
    root = _cast(b, root, b.float_dtype, f"{name}narrow")
    return b.op("Mul", [b.op("Div", [value, root], f"{name}normalized"), net.value(weight)], node.name)


def _cast(b: GraphBuilder, value: str, dtype: DTypeLike, name: str) -> str:
    """Into float32 and back, for what float16 cannot hold: squares above 255. Nothing where floats are float32."""
    if b.float_dtype == np.float32:
        return value
    return b.op("Cast", [value], name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@lowers(aten.linalg_vector_norm.default)
def vector_norm(net: LoweringContext, node: fx.Node) -> Value:
    """The root of the sum of squares along axes that are kept."""
    order, kept = argument(node, 1, "ord", 2), argument(node, 3, "keepdim", False)
    if order != 2 or not kept or argument(node, 4, "dtype", None) is not None:
        raise ExportError(node.name, f"a norm of order {order}, keepdim {kept}", "Euclid's, keepdim=True")
    name = f"{node.name}{STATISTICS}"
    b = net.builder
    axes = b.constant(f"{name}axes", [int(axis) for axis in node.args[2]])
    wide = _cast(b, net.value(node.args[0]), np.float32, f"{name}wide")
    return _cast(b, b.op("ReduceL2", [wide, axes], f"{name}norm", keepdims=1), b.float_dtype, f"{name}narrow")


@lowers(aten.clamp_min.default)
def clamp_min(net: LoweringContext, node: fx.Node) -> Value:
    # What float16 cannot hold would be 0, and divide by it.
    number = max(float(node.args[1]), float(np.finfo(net.builder.float_dtype).smallest_subnormal))
    least = net.builder.constant(f"{node.name}.least", np.float32(number))
    return net.builder.op("Max", [net.value(node.args[0]), least], node.name)


@lowers(aten.expand_as.default)
def expand_as(net: LoweringContext, node: fx.Node) -> Value:
    """A divisor is repeated by the division itself."""
    if all(user.target is aten.div.Tensor and user.args[0] is node.args[1] for user in node.users):
        return net.value(node.args[0])
    shape = net.builder.constant(f"{node.name}.shape", shape_of(node))
    return net.builder.op("Expand", [net.value(node.args[0]), shape], node.name)


@lowers(aten.select.int)
def select(net: LoweringContext, node: fx.Node) -> Value:
    """One of an axis, which is then gone."""
    source, axis, index = node.args
    axis %= len(shape_of(source))
    index = net.builder.constant(f"{node.name}.index", np.array(int(index) % shape_of(source)[axis], np.int64))
    return net.builder.op("Gather", [net.value(source), index], node.name, axis=axis)


@lowers(aten.stack.default)
def stack(net: LoweringContext, node: fx.Node) -> Value:
    axis = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    axes = net.builder.constant(f"{node.name}.axis", [axis])
    parts = [net.builder.op("Unsqueeze", [net.value(part), axes], f"{node.name}.part") for part in node.args[0]]
    return net.builder.op("Concat", parts, node.name, axis=axis)
