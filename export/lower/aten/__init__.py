"""One function an ATen operation: torch.export's graph, static in shape, to ONNX nodes.

The table at the end is the whole vocabulary; anything else is an ExportError, never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from intsr.errors import ExportError
from intsr.export.lower.write.borders import Window
from intsr.export.lower.write.group_norm import GroupNorm, write_group_norm
from intsr.export.lower.write.layers import merged_bias, merged_layer, rows_of, write_convolution, write_linear

if TYPE_CHECKING:
    from intsr.export.lower.network import NetworkLowering

Value = str | tuple[str, ...]
Handler = Callable[["NetworkLowering", fx.Node], Value]


def _shape(node: Any) -> list[int]:
    return [int(side) for side in node.meta["val"].shape]


def _argument(node: fx.Node, index: int, keyword: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(keyword, default)


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in (list(value) * 2)[:2]]


def conv2d(net: NetworkLowering, node: fx.Node) -> Value:
    x, weight = node.args[0], node.args[1]
    site = net.site_of(weight)
    stride, padding, dilation = (
        _pair(_argument(node, 3 + i, key, default))
        for i, (key, default) in enumerate((("stride", 1), ("padding", 0), ("dilation", 1)))
    )
    groups, (height, width) = int(_argument(node, 6, "groups", 1)), _shape(weight)[2:]
    value, bias, layer = net.value(x), net.bias_of(site), net.layers.get(site)
    if layer is not None:
        before = net.patterns.pads.get(x, (0, 0, 0, 0))
        top, left, bottom, right = (a + b for a, b in zip(before, (*padding, *padding), strict=True))
        window = Window(
            (height, width), (stride[0], stride[1]), (dilation[0], dilation[1]), (top, left, bottom, right)
        )
        rows, columns = _shape(x)[2:]
        size = (rows - before[0] - before[2], columns - before[1] - before[3])
        return write_convolution(net, value, layer, window, size, bias, groups)
    kernel = net.builder.constant(f"{site}.weight", net.parameter(weight))
    inputs = [value, kernel] + ([] if bias is None else [net.builder.constant(f"{site}.bias", bias)])
    return net.builder.op(
        "Conv",
        inputs,
        site,
        kernel_shape=[height, width],
        strides=stride,
        pads=(*padding, *padding),
        dilations=dilation,
        group=groups,
    )


def linear(net: NetworkLowering, node: fx.Node) -> Value:
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


def group_norm(net: NetworkLowering, node: fx.Node) -> Value:
    x, groups, weight, bias = node.args[:4]
    epsilon, gamma, beta = float(_argument(node, 4, "eps", 1e-5)), net.parameter(weight), net.parameter(bias)
    norm = GroupNorm(net.site_of(weight), tuple(_shape(node)), int(groups), gamma, beta, epsilon)
    return write_group_norm(net.builder, net.value(x), norm)


def layer_norm(net: NetworkLowering, node: fx.Node) -> Value:
    x, normalized, weight, bias = node.args[:4]
    name = net.site_of(weight)
    affine = [net.builder.constant(f"{name}.{n}", net.parameter(p)) for n, p in (("weight", weight), ("bias", bias))]
    epsilon = float(_argument(node, 4, "eps", 1e-5))
    inputs = [net.value(x), *affine]
    return net.builder.op("LayerNormalization", inputs, name, axis=-len(list(normalized)), epsilon=epsilon)


def silu(net: NetworkLowering, node: fx.Node) -> Value:
    x = net.value(node.args[0])
    return net.builder.op("Mul", [x, net.builder.op("Sigmoid", [x], f"{node.name}.sigmoid")], node.name)


def gelu(net: NetworkLowering, node: fx.Node) -> Value:
    return net.builder.op(
        "Gelu", [net.value(node.args[0])], node.name, approximate=node.kwargs.get("approximate", "none")
    )


def attention(net: NetworkLowering, node: fx.Node) -> Value:
    """softmax(q k^T / sqrt(d)) v, (N, heads, tokens, d), no mask: the pattern that engines fuse."""
    query, key, value = _attention_inputs(net, node)
    if len(node.args) > 3 and any(node.args[3:]):
        raise ExportError(node.name, "attention with a mask, dropout or causality", "plain attention")
    scale = node.kwargs.get("scale") or 1 / math.sqrt(_shape(node.args[0])[-1])
    b = net.builder
    # A constant key is transposed in the graph too: TensorRT fuses attention only in that form (docs/tensorrt.md).
    transposed = b.op("Transpose", [key], f"{node.name}.key", perm=[0, 1, 3, 2])
    factor = b.constant(f"{node.name}.factor", np.float32(scale))
    scaled = b.op("Mul", [query, factor], f"{node.name}.query")
    scores = b.op("MatMul", [scaled, transposed], f"{node.name}.scores")
    weights = b.op("Softmax", [scores], f"{node.name}.softmax", axis=-1)
    return b.op("MatMul", [weights, value], node.name)


def _attention_inputs(net: NetworkLowering, node: fx.Node) -> tuple[str, ...]:
    """Query, key and value, (N, heads, tokens, d) each; one product and one Split where they share their input."""
    linears = net.patterns.projections.get(node)
    if linears is None:
        return tuple(net.value(argument) for argument in node.args[:3])
    sites = [net.site_of(linear.args[1]) for linear in linears]
    site = f"{sites[0]}kv"
    layer = replace(merged_layer([net.layers[s] for s in sites]), site=site)
    merged = write_linear(
        net, net.value(linears[0].args[0]), layer, merged_bias([net.bias_of(s) for s in sites], layer)
    )
    count, heads, tokens, width = _shape(node)
    b = net.builder
    shape = b.constant(f"{site}.shape", [count, tokens, 3 * heads, width])
    split = b.op(
        "Transpose", [b.op("Reshape", [merged, shape], f"{site}.heads")], f"{site}.permute", perm=[0, 2, 1, 3]
    )
    sizes = b.constant(f"{site}.sizes", [heads] * 3)
    return tuple(b.node("Split", [split, sizes], f"{site}.split", outputs=3, axis=1))


def _binary(op_type: str, neutral: float | None) -> Handler:
    def handler(net: NetworkLowering, node: fx.Node) -> Value:
        if node.kwargs:
            raise ExportError(node.name, f"arguments {sorted(node.kwargs)}", f"plain {op_type}")
        left, right = node.args
        # diffusers divides by output_scale_factor = 1 after every block.
        if neutral is not None and isinstance(right, int | float) and right == neutral:
            return net.value(left)
        inputs = [
            net.value(v) if isinstance(v, fx.Node) else net.builder.constant(f"{node.name}.c", np.float32(v))
            for v in (left, right)
        ]
        return net.builder.op(op_type, inputs, node.name)

    return handler


def identity(net: NetworkLowering, node: fx.Node) -> Value:
    return net.value(node.args[0])


def checked_dtype(net: NetworkLowering, node: fx.Node) -> Value:
    if node.meta["val"].dtype != node.args[0].meta["val"].dtype:
        raise ExportError(node.name, f"a cast to {node.meta['val'].dtype}", "one float type throughout")
    return net.value(node.args[0])


def reshape(net: NetworkLowering, node: fx.Node) -> Value:
    shape = net.builder.constant(f"{node.name}.shape", _shape(node))
    return net.builder.op("Reshape", [net.value(node.args[0]), shape], node.name)


def permute(net: NetworkLowering, node: fx.Node) -> Value:
    rank = len(_shape(node))
    order = [int(axis) % rank for axis in node.args[1]]
    return net.builder.op("Transpose", [net.value(node.args[0])], node.name, perm=order)


def transpose(net: NetworkLowering, node: fx.Node) -> Value:
    order = list(range(len(_shape(node))))
    first, second = (int(axis) % len(order) for axis in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return net.builder.op("Transpose", [net.value(node.args[0])], node.name, perm=order)


def concatenate(net: NetworkLowering, node: fx.Node) -> Value:
    values = [net.value(v) for v in node.args[0]]
    return net.builder.op("Concat", values, node.name, axis=int(_argument(node, 1, "dim", 0)))


def chunk(net: NetworkLowering, node: fx.Node) -> Value:
    if node in net.patterns.halves:
        return _halves(net, net.patterns.halves[node])
    axis = int(_argument(node, 2, "dim", 0))
    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    inputs = [net.value(node.args[0]), net.builder.constant(f"{node.name}.sizes", sizes)]
    return tuple(net.builder.node("Split", inputs, node.name, outputs=len(sizes), axis=axis))


def _halves(net: NetworkLowering, linear: fx.Node) -> Value:
    site = net.site_of(linear.args[1])
    layer, bias = net.layers[site], net.bias_of(site)
    half = len(layer.weight_codes) // 2
    parts = []
    for rows in (slice(half), slice(half, None)):
        part, own = rows_of(layer, bias, rows)
        parts.append(write_linear(net, net.value(linear.args[0]), part, own))
    return tuple(parts)


def get_item(net: NetworkLowering, node: fx.Node) -> Value:
    source, index = node.args
    return net.values(source)[int(index)]


def pad(net: NetworkLowering, node: fx.Node) -> Value:
    mode, fill = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None) or 0.0
    if node in net.patterns.pads:
        return net.value(node.args[0])
    if mode != "constant" or fill != 0.0:
        raise ExportError(node.name, f"padding with mode {mode!r} and {fill}", "zeros")
    amounts = [int(v) for v in node.args[1]]
    rank = len(_shape(node))
    begin, end = [0] * rank, [0] * rank
    for position, (low, high) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        begin[rank - 1 - position], end[rank - 1 - position] = low, high
    inputs = [net.value(node.args[0]), net.builder.constant(f"{node.name}.pads", begin + end)]
    return net.builder.op("Pad", inputs, node.name, mode="constant")


def upsample_nearest(net: NetworkLowering, node: fx.Node) -> Value:
    before, after = _shape(node.args[0]), _shape(node)
    if any(new % old for old, new in zip(before, after, strict=True)):
        raise ExportError(node.name, f"resize {before} to {after}", "a whole factor")
    factors = np.array([new / old for old, new in zip(before, after, strict=True)], np.float32)
    sizes = net.builder.constant(f"{node.name}.sizes", [int(f * old) for f, old in zip(factors, before, strict=True)])
    return net.builder.op(
        "Resize",
        [net.value(node.args[0]), "", "", sizes],
        node.name,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


HANDLERS: dict[str, Handler] = {
    "aten.conv2d.default": conv2d,
    "aten.linear.default": linear,
    "aten.group_norm.default": group_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.silu.default": silu,
    "aten.gelu.default": gelu,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.add.Tensor": _binary("Add", 0.0),
    "aten.mul.Tensor": _binary("Mul", 1.0),
    "aten.div.Tensor": _binary("Div", 1.0),
    "aten.dropout.default": identity,
    "aten.contiguous.default": identity,
    "aten.clone.default": identity,
    "aten.to.dtype": checked_dtype,
    "aten.reshape.default": reshape,
    "aten.view.default": reshape,
    "aten.unflatten.int": reshape,
    "aten.flatten.using_ints": reshape,
    "aten.unsqueeze.default": reshape,
    "aten.squeeze.dim": reshape,
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.cat.default": concatenate,
    "aten.chunk.default": chunk,
    "<built-in function getitem>": get_item,
    "aten.pad.default": pad,
    "aten.upsample_nearest2d.vec": upsample_nearest,
}
