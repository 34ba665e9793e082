"""Operations that move values and compute none."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from intsr.errors import ExportError
from intsr.export.lower.context import LoweringContext, Value, argument, lowers, shape_of
from intsr.export.lower.write.layers import rows_of, write_linear

aten: Any = torch.ops.aten


@lowers(
    aten.reshape.default,
    aten.view.default,
    aten.unflatten.int,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)
def reshape(net: LoweringContext, node: fx.Node) -> Value:
    shape = net.builder.constant(f"{node.name}.shape", shape_of(node))
    return net.builder.op("Reshape", [net.value(node.args[0]), shape], node.name)


@lowers(aten.permute.default)
def permute(net: LoweringContext, node: fx.Node) -> Value:
    rank = len(shape_of(node))
    order = [int(axis) % rank for axis in node.args[1]]
    return net.builder.op("Transpose", [net.value(node.args[0])], node.name, perm=order)


@lowers(aten.transpose.int)
def transpose(net: LoweringContext, node: fx.Node) -> Value:
    order = list(range(len(shape_of(node))))
    first, second = (int(axis) % len(order) for axis in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return net.builder.op("Transpose", [net.value(node.args[0])], node.name, perm=order)


@lowers(aten.cat.default)
def concatenate(net: LoweringContext, node: fx.Node) -> Value:
    values = [net.value(v) for v in node.args[0]]
    return net.builder.op("Concat", values, node.name, axis=int(argument(node, 1, "dim", 0)))


@lowers(aten.chunk.default)
def chunk(net: LoweringContext, node: fx.Node) -> Value:
    if node in net.patterns.halves:
        return _halves(net, net.patterns.halves[node])
    axis = int(argument(node, 2, "dim", 0))
    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    inputs = [net.value(node.args[0]), net.builder.constant(f"{node.name}.sizes", sizes)]
    return tuple(net.builder.node("Split", inputs, node.name, outputs=len(sizes), axis=axis))


def _halves(net: LoweringContext, linear: fx.Node) -> Value:
    site = net.site_of(linear.args[1])
    layer, bias = net.layers[site], net.bias_of(site)
    half = len(layer.weight_codes) // 2
    parts = []
    for rows in (slice(half), slice(half, None)):
        part, own = rows_of(layer, bias, rows)
        parts.append(write_linear(net, net.value(linear.args[0]), part, own))
    return tuple(parts)


@lowers(operator.getitem)
def get_item(net: LoweringContext, node: fx.Node) -> Value:
    source, index = node.args
    return net.known[source][index]


@lowers(aten.pad.default)
def pad(net: LoweringContext, node: fx.Node) -> Value:
    mode, fill = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None) or 0.0
    if node in net.patterns.pads:
        return net.value(node.args[0])
    if mode != "constant" or fill != 0.0:
        raise ExportError(node.name, f"padding with mode {mode!r} and {fill}", "zeros")
    amounts = [int(v) for v in node.args[1]]
    rank = len(shape_of(node))
    begin, end = [0] * rank, [0] * rank
    for position, (low, high) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        begin[rank - 1 - position], end[rank - 1 - position] = low, high
    inputs = [net.value(node.args[0]), net.builder.constant(f"{node.name}.pads", begin + end)]
    return net.builder.op("Pad", inputs, node.name, mode="constant")


@lowers(aten.upsample_nearest2d.vec)
def upsample_nearest(net: LoweringContext, node: fx.Node) -> Value:
    before, after = shape_of(node.args[0]), shape_of(node)
    if any(new % old for old, new in zip(before, after, strict=True)):
        raise ExportError(node.name, f"resize {before} to {after}", "a whole factor")
    sizes = net.builder.constant(f"{node.name}.sizes", after)
    return net.builder.op(
        "Resize",
        [net.value(node.args[0]), "", "", sizes],
        node.name,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
