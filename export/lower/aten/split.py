"""Operations that only PassionSR's split layers and quantized attention have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

import intsr.export.fold.split_layers  # noqa: F401  it registers intsr::fake_quantize
from intsr.errors import ExportError
from intsr.export.lower.context import LoweringContext, Value, argument, lowers, shape_of
from intsr.export.onnx.builder import GraphBuilder
from intsr.kernels.quantizer import QuantParams

aten: Any = torch.ops.aten
UINT8_MAX = 255


@lowers(torch.ops.intsr.fake_quantize.default)
def fake_quantize(net: LoweringContext, node: fx.Node) -> Value:
    """A grid as Q and DQ.

    Where activations are uint8, rounding is a step of its own, half away from zero, and Q only changes the type:
    engines that make one operation of Q and DQ round x * (1 / D) + zero-point, which flips four times as many codes.
    """
    x, *numbers = node.args
    params = QuantParams(*numbers)
    if net.builder.lowering.activation == "uint8":
        return _rounded_first(net.builder, net.value(x), params, node.name)
    return net.activations.write_grid(net.value(x), params, node.name)


def _rounded_first(b: GraphBuilder, value: str, params: QuantParams, name: str) -> str:
    """x / D, R, a Clip where the grid has fewer codes than uint8, then Q with scale 1 and DQ with D."""
    zero_point = min(max(params.zero_point, 0), UINT8_MAX)
    beyond = params.zero_point - zero_point
    value = b.op("Div", [value, b.constant(f"{name}.step", np.float32(params.scale))], f"{name}.steps")
    value = _round_half_away(b, value, name)
    if beyond:
        value = b.op("Add", [value, b.constant(f"{name}.beyond", np.float32(beyond))], f"{name}.moved")
    if params.qmax < UINT8_MAX:
        ends = {"low": -zero_point, "high": params.qmax - zero_point}
        constants = [b.constant(f"{name}.{end}", np.float32(at)) for end, at in ends.items()]
        value = b.op("Clip", [value, *constants], f"{name}.clipped")
    offset = b.constant(f"{name}.zero_point", np.array(zero_point, np.uint8))
    one, scale = (b.constant(f"{name}.{n}", np.float32(v)) for n, v in (("one", 1), ("scale", params.scale)))
    codes = b.op("QuantizeLinear", [value, one, offset], f"{name}.quantize")
    value = b.op("DequantizeLinear", [codes, scale, offset], f"{name}.dequantize")
    if not beyond:
        return value
    back = b.constant(f"{name}.back", np.float32(beyond * params.scale))
    return b.op("Sub", [value, back], f"{name}.moved_back")


def _round_half_away(b: GraphBuilder, value: str, name: str) -> str:
    """max(floor(x + 1/2), 0) + min(ceil(x - 1/2), 0): ONNX's own Round takes halves to even."""
    half, zero = (b.constant(f"{name}.{n}", np.float32(v)) for n, v in (("half", 0.5), ("zero", 0.0)))
    up = b.op("Floor", [b.op("Add", [value, half], f"{name}.above")], f"{name}.floor")
    down = b.op("Ceil", [b.op("Sub", [value, half], f"{name}.below")], f"{name}.ceil")
    signs = [b.op("Max", [up, zero], f"{name}.positive"), b.op("Min", [down, zero], f"{name}.negative")]
    return b.op("Add", signs, f"{name}.rounded")


@lowers(aten.matmul.default)
def matmul(net: LoweringContext, node: fx.Node) -> Value:
    return net.builder.op("MatMul", [net.value(argument) for argument in node.args[:2]], node.name)


@lowers(aten.softmax.int)
def softmax(net: LoweringContext, node: fx.Node) -> Value:
    return net.builder.op("Softmax", [net.value(node.args[0])], node.name, axis=int(argument(node, 1, "dim", -1)))


@lowers(aten.slice.Tensor, aten.narrow.default)
def narrow(net: LoweringContext, node: fx.Node) -> Value:
    """Some neighbours along one axis."""
    source, before, after = net.value(node.args[0]), shape_of(node.args[0]), shape_of(node)
    if argument(node, 4, "step", 1) != 1:
        raise ExportError(node.name, "a slice with steps", "neighbours")
    if after == before:
        return source
    axis = int(argument(node, 1, "dim", 0)) % len(before)
    first = int(argument(node, 2, "start", None) or 0)
    first += before[axis] * (first < 0)
    bounds = {"start": first, "end": first + after[axis], "axis": axis}
    constants = [net.builder.constant(f"{node.name}.{name}", [value]) for name, value in bounds.items()]
    return net.builder.op("Slice", [source, *constants], node.name)


@lowers(aten.sum.dim_IntList)
def total(net: LoweringContext, node: fx.Node) -> Value:
    """Sum along axes that are kept."""
    if not argument(node, 2, "keepdim", False):
        raise ExportError(node.name, "a sum that drops its axis", "keepdim=True")
    axes = net.builder.constant(f"{node.name}.axes", [int(axis) % len(shape_of(node)) for axis in node.args[1]])
    return net.builder.op("ReduceSum", [net.value(node.args[0]), axes], node.name, keepdims=1)
