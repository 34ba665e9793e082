"""Convolutions, linear layers, norms and attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from intsr.calib.models.phases import PHASES
from intsr.errors import ExportError
from intsr.export.lower.context import LoweringContext, Value, argument, lowers, pair, shape_of
from intsr.export.lower.write.borders import Window
from intsr.export.lower.write.group_norm import GroupNorm, write_group_norm
from intsr.export.lower.write.layers import merged, rows_of, write_convolution, write_linear

aten: Any = torch.ops.aten
EVERY_ROW = slice(None)


@lowers(aten.conv2d.default)
def conv2d(net: LoweringContext, node: fx.Node) -> Value:
    return _convolution(net, node)


@lowers(torch.ops.intsr.join_phases.default)
def join_phases(net: LoweringContext, node: fx.Node) -> Value:
    """The convolution in front of it as one for each phase, which pads where that phase looks, and DepthToSpace."""
    builder, convolution, count = net.builder, node.args[0], shape_of(node)[1]
    parts = [
        _convolution(net, convolution, slice(k * count, (k + 1) * count), (1 - a, 1 - b, a, b))
        for k, (a, b) in enumerate(PHASES)
    ]
    stacked = builder.op("Concat", parts, f"{node.name}.phases", axis=1)
    return builder.op("DepthToSpace", [stacked], node.name, blocksize=2, mode="DCR")


def _convolution(
    net: LoweringContext, node: fx.Node, rows: slice = EVERY_ROW, pads: tuple[int, int, int, int] | None = None
) -> str:
    """A traced convolution; rows: of those output channels alone, pads: with that padding instead of its own."""
    x, weight = node.args[0], node.args[1]
    site = net.site_of(weight)
    stride, padding, dilation = (
        pair(argument(node, 3 + i, key, default))
        for i, (key, default) in enumerate((("stride", 1), ("padding", 0), ("dilation", 1)))
    )
    groups, (height, width) = int(argument(node, 6, "groups", 1)), shape_of(weight)[2:]
    value, bias, layer = net.value(x), net.bias_of(site), net.layers.get(site)
    own = (*padding, *padding)
    if layer is not None:
        before = net.patterns.pads.get(x, (0, 0, 0, 0))
        size = shape_of(x)[2] - before[0] - before[2], shape_of(x)[3] - before[1] - before[3]
        top, left, bottom, right = (a + b for a, b in zip(before, own, strict=True))
        window = Window((height, width), size, stride, dilation, (top, left, bottom, right), groups)
        if pads is not None:
            layer, bias = rows_of(layer, bias, rows)
            window = replace(window, pads=pads, frame=window.pads)
        return write_convolution(net, value, layer, window, bias)
    kernel = net.builder.constant(f"{site}.weight", net.parameter(weight)[rows])
    inputs = [value, kernel] + ([] if bias is None else [net.builder.constant(f"{site}.bias", bias[rows])])
    return net.builder.op(
        "Conv",
        inputs,
        site,
        kernel_shape=[height, width],
        strides=stride,
        pads=pads or own,
        dilations=dilation,
        group=groups,
    )


@lowers(aten.linear.default)
def linear(net: LoweringContext, node: fx.Node) -> Value:
    """x W^T + bias."""
    x, weight = node.args[0], node.args[1]
    site = net.site_of(weight)
    bias, layer = net.bias_of(site), net.layers.get(site)
    if layer is not None:
        return write_linear(net, net.value(x), layer, bias)
    matrix = net.builder.constant(f"{site}.weight", net.parameter(weight).T)
    product = net.builder.op("MatMul", [net.value(x), matrix], site)
    if bias is None:
        return product
    return net.builder.op("Add", [product, net.builder.constant(f"{site}.bias", bias)], f"{site}.add_bias")


@lowers(aten.group_norm.default)
def group_norm(net: LoweringContext, node: fx.Node) -> Value:
    x, groups, weight, bias = node.args[:4]
    epsilon, gamma, beta = float(argument(node, 4, "eps", 1e-5)), net.parameter(weight), net.parameter(bias)
    norm = GroupNorm(net.site_of(weight), tuple(shape_of(node)), int(groups), gamma, beta, epsilon)
    return write_group_norm(net.builder, net.value(x), norm)


@lowers(aten.layer_norm.default)
def layer_norm(net: LoweringContext, node: fx.Node) -> Value:
    x, normalized = node.args[:2]
    weight, bias = (argument(node, 2 + i, name, None) for i, name in enumerate(("weight", "bias")))
    epsilon, axis = float(argument(node, 4, "eps", 1e-5)), -len(list(normalized))
    if weight is None:
        # ONNX's has always a factor.
        ones = net.builder.constant(f"{node.name}.weight", np.ones(list(normalized), np.float32))
        return net.builder.op("LayerNormalization", [net.value(x), ones], node.name, axis=axis, epsilon=epsilon)
    name = net.site_of(weight)
    affine = [net.builder.constant(f"{name}.{n}", net.parameter(p)) for n, p in (("weight", weight), ("bias", bias))]
    return net.builder.op("LayerNormalization", [net.value(x), *affine], name, axis=axis, epsilon=epsilon)


@lowers(aten.scaled_dot_product_attention.default)
def attention(net: LoweringContext, node: fx.Node) -> Value:
    """softmax(q k^T / sqrt(d)) v, (N, heads, tokens, d), no mask: the pattern that engines fuse."""
    query, key, value = _attention_inputs(net, node)
    if len(node.args) > 3 and any(node.args[3:]):
        raise ExportError(node.name, "attention with a mask, dropout or causality", "plain attention")
    scale = node.kwargs.get("scale") or 1 / math.sqrt(shape_of(node.args[0])[-1])
    b = net.builder
    # A constant key is transposed in the graph too: TensorRT fuses attention only so (docs/compile/tensorrt.md).
    transposed = b.op("Transpose", [key], f"{node.name}.key", perm=[0, 1, 3, 2])
    factor = b.constant(f"{node.name}.factor", np.float32(scale))
    scaled = b.op("Mul", [query, factor], f"{node.name}.query")
    scores = b.op("MatMul", [scaled, transposed], f"{node.name}.scores")
    weights = b.op("Softmax", [scores], f"{node.name}.softmax", axis=-1)
    return b.op("MatMul", [weights, value], node.name)


def _attention_inputs(net: LoweringContext, node: fx.Node) -> tuple[str, ...]:
    """Query, key and value, (N, heads, tokens, d) each; one product and one Split where they share their input."""
    linears = net.patterns.projections.get(node)
    if linears is None:
        return tuple(net.value(argument) for argument in node.args[:3])
    sites = [net.site_of(linear.args[1]) for linear in linears]
    site = f"{sites[0]}kv"
    product = merged([net.layers[s] for s in sites], [net.bias_of(s) for s in sites], site)
    value = write_linear(net, net.value(linears[0].args[0]), *product)
    count, heads, tokens, width = shape_of(node)
    b = net.builder
    shape = b.constant(f"{site}.shape", [count, tokens, 3 * heads, width])
    split = b.op(
        "Transpose", [b.op("Reshape", [value, shape], f"{site}.heads")], f"{site}.permute", perm=[0, 2, 1, 3]
    )
    sizes = b.constant(f"{site}.sizes", [heads] * 3)
    return tuple(b.node("Split", [split, sizes], f"{site}.split", outputs=3, axis=1))
