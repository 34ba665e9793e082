"""Conv2d, Linear and attention as ONNX: float, or integers in the form that the lowering asks for.

With weight_scale `tensor`, t a power of two and r = scale / t, one factor an output channel, both exact in fp16:

    y = (x^ . (codes t)) r + bias
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from intsr.export.fold.fold import FoldedLayer
from intsr.export.lower.context import LoweringContext
from intsr.export.lower.write.activations import check_padding, shifted_bias, value_outside, write_weight
from intsr.export.lower.write.borders import ColumnBias, Window, border_bias
from intsr.export.onnx.builder import GraphBuilder
from intsr.kernels.quantizer import MIN_SCALE, dequantize_weight

F32 = NDArray[np.float32]
# Half of fp16's range: what the sums of codes and scales may reach at worst.
LARGEST_PRODUCT = 32768.0
# On long rows oneDNN's int8 convolutions of more output channels run at a third of their speed:
# docs/measure/performance.md. Lowering.split_rows says from where they are written in parts.
SPLIT_CHANNELS, PART_CHANNELS = 320, 256


def tensor_scale(layer: FoldedLayer) -> float:
    """t: the power of two below the largest channel's scale, or as much less as keeps x^ . (codes t) within fp16.

    At most 1 and at least fp16's smallest normal number, so that r is exact, too.
    """
    assert layer.activation is not None
    sums = np.abs(layer.weight_codes.reshape(len(layer.weight_codes), -1).astype(np.int64)).sum(axis=1)
    worst = float(max(sums.max(), 1)) * 128 * layer.activation.scale
    limit = min(float(layer.weight_scale.max()), LARGEST_PRODUCT / worst, 1.0)
    return max(2.0 ** math.floor(math.log2(limit)), MIN_SCALE)


def write_convolution(
    net: LoweringContext,
    value: str,
    layer: FoldedLayer,
    window: Window,
    size: tuple[int, int],
    bias: F32 | None,
    groups: int = 1,
) -> str:
    """An integer convolution of `value` (N, Cin, *size) by codes (Cout, Cin / groups, kh, kw), and its branch."""
    y = _write_in_parts(net, value, layer, window, size, bias, groups)
    if layer.branch is None:
        return y
    b, site, (up, down) = net.builder, layer.site, layer.branch
    kernel = b.constant(f"{site}.down", down)
    slides = {"kernel_shape": list(window.kernel), "strides": list(window.stride), "pads": list(window.pads)}
    narrow = b.op("Conv", [value, kernel], f"{site}.narrow", **slides, dilations=list(window.dilation))
    wide = b.op("Conv", [narrow, b.constant(f"{site}.up", up[:, :, None, None])], f"{site}.wide", kernel_shape=[1, 1])
    return b.op("Add", [y, wide], f"{site}.branched")


def _write_in_parts(
    net: LoweringContext,
    value: str,
    layer: FoldedLayer,
    window: Window,
    size: tuple[int, int],
    bias: F32 | None,
    groups: int,
) -> str:
    count = len(layer.weight_codes)
    limit = net.builder.lowering.split_rows
    if not limit or groups != 1 or count <= SPLIT_CHANNELS or window.taps_inside(size, 1).shape[1] <= limit:
        return _write_convolution(net, value, layer, window, size, bias, groups)
    parts = []
    for start in range(0, count, PART_CHANNELS):
        part, own = rows_of(layer, bias, slice(start, start + PART_CHANNELS))
        parts.append(_write_convolution(net, value, part, window, size, own, groups))
    return net.builder.op("Concat", parts, f"{layer.site}.joined", axis=1)


def _write_convolution(
    net: LoweringContext,
    value: str,
    layer: FoldedLayer,
    window: Window,
    size: tuple[int, int],
    bias: F32 | None,
    groups: int = 1,
) -> str:
    """An integer convolution of `value` (N, Cin, *size) by codes (Cout, Cin / groups, kh, kw).

    Raises ExportError where a padded zero meets a grid without 0.
    """
    b, codes = net.builder, layer.weight_codes
    check_padding(layer, window.pads, b.lowering)
    # With groups, every output channel has other inputs: padded in front, as everywhere else.
    biased = b.lowering.borders == "bias" and groups == 1
    value, shift, padded = net.activations.write(value, layer, (0, 0, 0, 0) if biased else window.pads)
    if padded:
        window = replace(window, pads=(0, 0, 0, 0))
    if biased and any(window.pads) and (shift != 0.0 or layer.let_shift is not None):
        weight = dequantize_weight(codes, layer.weight_scale)
        borders = border_bias(weight, bias, shift, value_outside(layer, b.lowering), window, size)
        return _add_borders(b, _product(net, value, layer, window, groups, None), borders, layer.site)
    return _product(net, value, layer, window, groups, shifted_bias(bias, codes, layer.weight_scale, shift))


def _product(
    net: LoweringContext, value: str, layer: FoldedLayer, window: Window, groups: int, bias: F32 | None
) -> str:
    """The convolution itself, with a bias that is the same everywhere."""
    b, site = net.builder, layer.site
    kernel, factors = _weight(net, layer, 0)
    inside = bias is not None and factors is None
    y = b.op(
        "Conv",
        [value, kernel] + ([b.constant(f"{site}.bias", bias)] if bias is not None and inside else []),
        site,
        kernel_shape=list(window.kernel),
        strides=list(window.stride),
        pads=list(window.pads),
        dilations=list(window.dilation),
        group=groups,
    )
    if factors is not None:
        y = b.op("Mul", [y, b.constant(f"{site}.factors", factors.reshape(1, -1, 1, 1))], f"{site}.rescale")
    if bias is None or inside:
        return y
    return b.op("Add", [y, b.constant(f"{site}.bias", bias.reshape(1, -1, 1, 1))], f"{site}.add_bias")


def _add_borders(b: GraphBuilder, y: str, borders: tuple[ColumnBias, ...], site: str) -> str:
    """y plus the bias of its column; one addition each, so that nothing is rounded twice."""
    sums = [
        b.op("Add", [y, b.constant(f"{site}.bias", column.bias[None, :, :, None])], f"{site}.add_bias")
        for column in borders
    ]
    result = sums[0]
    for column, total in zip(borders[1:], sums[1:], strict=True):
        where = b.constant(f"{site}.columns", column.columns.reshape(1, 1, 1, -1))
        result = b.op("Where", [where, total, result], f"{site}.border")
    return result


def write_linear(net: LoweringContext, value: str, layer: FoldedLayer, bias: F32 | None) -> str:
    """An integer linear layer as MatMul with codes stored (in, out): TensorRT takes that form's scales on axis 1."""
    b, site, x = net.builder, layer.site, value
    value, shift, _ = net.activations.write(value, layer, (0, 0, 0, 0))
    bias = shifted_bias(bias, layer.weight_codes, layer.weight_scale, shift)
    matrix, factors = _weight(net, replace(layer, weight_codes=layer.weight_codes.T), 1)
    y = b.op("MatMul", [value, matrix], site)
    if factors is not None:
        y = b.op("Mul", [y, b.constant(f"{site}.factors", factors)], f"{site}.rescale")
    if bias is not None:
        y = b.op("Add", [y, b.constant(f"{site}.bias", bias)], f"{site}.add_bias")
    if layer.branch is None:
        return y
    up, down = (b.constant(f"{site}.{n}", v.T) for n, v in zip(("up", "down"), layer.branch, strict=True))
    narrow = b.op("MatMul", [x, down], f"{site}.narrow")
    return b.op("Add", [y, b.op("MatMul", [narrow, up], f"{site}.wide")], f"{site}.branched")


def _weight(net: LoweringContext, layer: FoldedLayer, axis: int) -> tuple[str, F32 | None]:
    """The dequantized weight, and the factors that it still lacks."""
    codes, scale = layer.weight_codes, layer.weight_scale
    if net.builder.lowering.weight_scale == "channel" or layer.activation is None:
        return write_weight(net.builder, codes, scale, axis, layer.site), None
    t = tensor_scale(replace(layer, weight_codes=np.moveaxis(codes, axis, 0)))
    return write_weight(net.builder, codes, np.array(t, np.float32), axis, layer.site), scale / np.float32(t)


def rows_of(layer: FoldedLayer, bias: F32 | None, rows: slice) -> tuple[FoldedLayer, F32 | None]:
    """Some output channels of a layer as a layer, and their bias."""
    part = replace(layer, weight_codes=layer.weight_codes[rows], weight_scale=layer.weight_scale[rows])
    if layer.branch is not None:
        part = replace(part, branch=(layer.branch[0][rows], layer.branch[1]))
    return part, None if bias is None else bias[rows]


def merged_layer(layers: Sequence[FoldedLayer]) -> FoldedLayer:
    """Layers of one input and one grid as one, their output channels one after the other."""
    codes = np.concatenate([layer.weight_codes for layer in layers])
    scales = np.concatenate([layer.weight_scale for layer in layers])
    return replace(layers[0], weight_codes=codes, weight_scale=scales, branch=_merged_branch(layers))


def _merged_branch(layers: Sequence[FoldedLayer]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """All branches as one, up in blocks along the diagonal; None where no layer has one."""
    rows, ranks = [len(layer.weight_codes) for layer in layers], [len(x.branch[1]) if x.branch else 0 for x in layers]
    if not any(ranks):
        return None
    up = np.zeros((sum(rows), sum(ranks)))
    row = column = 0
    for layer, count, rank in zip(layers, rows, ranks, strict=True):
        if layer.branch is not None:
            up[row : row + count, column : column + rank] = layer.branch[0]
        row, column = row + count, column + rank
    return up, np.concatenate([layer.branch[1] for layer in layers if layer.branch is not None])


def merged_bias(biases: Sequence[F32 | None], layer: FoldedLayer) -> F32 | None:
    """The biases of a merged layer's equal parts; 0 where a part has none, None where no part has one."""
    if all(bias is None for bias in biases):
        return None
    zeros = np.zeros(len(layer.weight_codes) // len(biases), np.float32)
    return np.concatenate([zeros if bias is None else bias for bias in biases])
