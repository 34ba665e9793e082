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

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer
from intsr.export.lower.context import LoweringContext
from intsr.export.lower.write.activations import FLOAT, shifted_bias, value_outside
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


def write_convolution(net: LoweringContext, value: str, layer: FoldedLayer, window: Window, bias: F32 | None) -> str:
    """An integer convolution of `value` (N, Cin, H, W) by codes (Cout, Cin / groups, kh, kw), and its branch; or of
    frames, (N, Cin, frames, H, W) by (Cout, Cin, kt, kh, kw).

    Raises ExportError where a padded zero meets a grid without 0.
    """
    y = _write_integers(net, value, layer, window, bias)
    if layer.branch is None:
        return y
    b, site, (up, down) = net.builder, layer.site, layer.branch
    single = [1] * (down.ndim - 2)
    kernels = b.half(f"{site}.down", down), b.half(f"{site}.up", up.reshape(*up.shape, *single))
    narrow = b.op("Conv", [value, kernels[0]], f"{site}.narrow", **replace(window, groups=1).attributes)
    wide = b.op("Conv", [narrow, kernels[1]], f"{site}.wide", kernel_shape=single)
    return b.op("Add", [y, wide], f"{site}.branched")


def _write_integers(net: LoweringContext, value: str, layer: FoldedLayer, window: Window, bias: F32 | None) -> str:
    """As `write_convolution`, without the branch."""
    b, count, limit = net.builder, len(layer.weight_codes), net.builder.lowering.split_rows
    is_plain = window.groups == 1 and window.frames is None
    if limit and is_plain and count > SPLIT_CHANNELS and window.taps_inside(1).shape[1] > limit:
        starts = range(0, count, PART_CHANNELS)
        rows = [rows_of(layer, bias, slice(start, start + PART_CHANNELS)) for start in starts]
        parts = [_write_integers(net, value, part, window, own) for part, own in rows]
        return b.op("Concat", parts, f"{layer.site}.joined", axis=1)
    grid = layer.activation
    if any(window.pads) and grid is not None and not layer.takes_padding and b.lowering.activation != FLOAT:
        got = f"range [{grid.real_min:g}, {grid.real_max:g}] without 0 on a padded input"
        raise ExportError(layer.site, got)
    # With groups, every output channel has other inputs: padded in front, as everywhere else. Of frames, no target
    # has a use for that.
    biased = window.frames is not None or (b.lowering.borders == "bias" and window.groups == 1)
    frame = window.frame or window.pads
    value, shift, padded = net.activations.write(value, layer, (0, 0, 0, 0) if biased else frame)
    if padded:
        value = _without_surplus(b, value, window, frame, layer.site)
        window = replace(window, pads=(0, 0, 0, 0))
    if biased and any(window.pads) and (shift != 0.0 or layer.let_shift is not None):
        weight = dequantize_weight(layer.weight_codes, layer.weight_scale)
        if window.frames is not None:
            # A tap meets the border by its row and column alone, whatever its frame.
            weight = weight.astype(np.float64).sum(axis=2)
        borders = border_bias(weight, bias, shift, value_outside(layer, b.lowering), window)
        return _add_borders(b, _product(net, value, layer, window, None), borders, layer)
    return _product(net, value, layer, window, shifted_bias(bias, layer, shift))


def _without_surplus(b: GraphBuilder, value: str, window: Window, frame: tuple[int, ...], site: str) -> str:
    """x padded by `frame`, cut to what the window pads."""
    if frame == window.pads:
        return value
    first = [frame[axis] - window.pads[axis] for axis in (0, 1)]
    last = [frame[axis] + window.size[axis] + window.pads[axis + 2] for axis in (0, 1)]
    ends = [
        b.constant(f"{site}.{name}", values) for name, values in (("first", first), ("last", last), ("axes", [2, 3]))
    ]
    return b.op("Slice", [value, *ends], f"{site}.seen")


def _product(net: LoweringContext, value: str, layer: FoldedLayer, window: Window, bias: F32 | None) -> str:
    """The convolution itself, with a bias that is the same everywhere."""
    b, site = net.builder, layer.site
    kernel, factors = _weight(net, layer, 0)
    inputs = [value, kernel]
    if bias is not None and factors is None:
        inputs.append(b.constant(f"{site}.bias", bias))
    y = b.op("Conv", inputs, site, **window.attributes)
    if factors is None:
        return y
    channels = (1, -1, *[1] * (layer.weight_codes.ndim - 2))
    y = b.op("Mul", [y, b.constant(f"{site}.factors", factors.reshape(channels))], f"{site}.rescale")
    if bias is None:
        return y
    return b.op("Add", [y, b.constant(f"{site}.bias", bias.reshape(channels))], f"{site}.add_bias")


def _add_borders(b: GraphBuilder, y: str, borders: tuple[ColumnBias, ...], layer: FoldedLayer) -> str:
    """y plus the bias of its column; one addition each, so that nothing is rounded twice."""
    site, (count, height) = layer.site, borders[0].bias.shape
    shape = (1, count, *[1] * (layer.weight_codes.ndim - 4), height, 1)
    sums = [
        b.op("Add", [y, b.constant(f"{site}.bias", column.bias.reshape(shape))], f"{site}.add_bias")
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
    bias = shifted_bias(bias, layer, shift)
    matrix, factors = _weight(net, layer, 1)
    y = b.op("MatMul", [value, matrix], site)
    if factors is not None:
        y = b.op("Mul", [y, b.constant(f"{site}.factors", factors)], f"{site}.rescale")
    if bias is not None:
        y = b.op("Add", [y, b.constant(f"{site}.bias", bias)], f"{site}.add_bias")
    if layer.branch is None:
        return y
    up, down = (b.half(f"{site}.{n}", v.T) for n, v in zip(("up", "down"), layer.branch, strict=True))
    narrow = b.op("MatMul", [x, down], f"{site}.narrow")
    return b.op("Add", [y, b.op("MatMul", [narrow, up], f"{site}.wide")], f"{site}.branched")


def _weight(net: LoweringContext, layer: FoldedLayer, axis: int) -> tuple[str, F32 | None]:
    """int8 initializer, output channels along `axis`, and its DequantizeLinear; the factors that it still lacks.

    A site's codes are written once, however many nodes read them.
    """
    b, site, scale, factors = net.builder, layer.site, layer.weight_scale, None
    codes = layer.weight_codes if axis == 0 else layer.weight_codes.T
    if b.lowering.weight_scale == "tensor" and layer.activation is not None:
        scale = np.array(tensor_scale(layer), np.float32)
        factors = layer.weight_scale / scale
    for known, name in b.weights_of_site.get(site, ()):
        if known.shape == codes.shape and known.ctypes.data == codes.ctypes.data:
            return name, factors
    zeros = _zero_points(codes, axis) if b.lowering.packed and scale.ndim else None
    if zeros is None:
        weight = b.constant(f"{site}.weight", codes)
        zero_point = b.constant(f"{site}.weight_zero_point", np.zeros(scale.shape, np.int8))
    else:
        shape = (-1, *(1,) * (codes.ndim - 1)) if axis == 0 else (1, -1)
        weight = b.nibbles(f"{site}.weight", (codes + zeros.reshape(shape)).astype(np.uint8))
        zero_point = b.nibbles(f"{site}.weight_zero_point", zeros.astype(np.uint8))
    inputs = [weight, b.constant(f"{site}.weight_scale", scale), zero_point]
    value = b.op("DequantizeLinear", inputs, f"{site}.weight_dequantize", **({"axis": axis} if scale.ndim else {}))
    b.weights_of_site.setdefault(site, []).append((codes, value))
    return value, factors


def _zero_points(codes: NDArray[np.int8], axis: int) -> NDArray[np.int8] | None:
    """What each channel's codes need added to be uint4, (channels,); None where they need more bits."""
    others = tuple(i for i in range(codes.ndim) if i != axis)
    least, most = codes.min(others), codes.max(others)
    zeros = -np.minimum(least, 0)
    return zeros if int((np.maximum(most, 0).astype(np.int16) + zeros).max()) < 16 else None


def rows_of(layer: FoldedLayer, bias: F32 | None, rows: slice) -> tuple[FoldedLayer, F32 | None]:
    """Some output channels of a layer as a layer, and their bias."""
    part = replace(layer, weight_codes=layer.weight_codes[rows], weight_scale=layer.weight_scale[rows])
    if layer.branch is not None:
        part = replace(part, branch=(layer.branch[0][rows], layer.branch[1]))
    return part, None if bias is None else bias[rows]


def merged(layers: Sequence[FoldedLayer], biases: Sequence[F32 | None], site: str) -> tuple[FoldedLayer, F32 | None]:
    """Layers of one input and one grid, and of one size, as one, with their output channels one after the other."""
    codes = np.concatenate([layer.weight_codes for layer in layers])
    scale = np.concatenate([layer.weight_scale for layer in layers])
    layer = replace(layers[0], site=site, weight_codes=codes, weight_scale=scale, branch=_merged_branch(layers))
    if all(bias is None for bias in biases):
        return layer, None
    zeros = np.zeros(len(codes) // len(layers), np.float32)
    return layer, np.concatenate([zeros if bias is None else bias for bias in biases])


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
