"""int8 products with the scale, bias and residual behind them: references for the GEMM and convolution kernels.

    out = half(float(sum of codes * weights) * scale + bias + residual),   each step rounded to float32

With a the activation's grid (codes stored minus 128, zero-point z) and w the weights' scale a channel:

    D_a D_w sum((q - z) w) + b  =  (D_a D_w) sum(q w) + (b - D_a D_w z sum(w))

so that zero-points, of any size, live in the bias. Padding is by code: a padded pixel holds the code of 0, which LET
makes (0 - d) / s, another one in each channel. See docs/theory.md, "Borders".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.kernels.quantizer import QuantParams, quantize
from intsr.kernels.reference.group_norm import CODE_OFFSET


@dataclass(frozen=True, slots=True)
class Int8Product:
    """A linear layer or a convolution as the kernels take it."""

    # int8 (Cout, kh, kw, Cin).
    weights: Array
    # float32 (Cout,).
    scale: Array
    bias: Array
    # int8 (Cin,): the codes of a padded pixel.
    pad: Array
    stride: int = 1
    # Pixels added at the top, left, bottom and right.
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        channels_out, _, _, channels_in = self.weights.shape
        if channels_in % 16 or channels_out % 8:
            got = f"{channels_in} input and {channels_out} output channels"
            raise UsageError("int8 product", got, "multiples of 16 and 8", "pad the weights with zeros")
        for name, length, dtype in (
            ("scale", channels_out, np.float32),
            ("bias", channels_out, np.float32),
            ("pad", channels_in, np.int8),
        ):
            array = getattr(self, name)
            if array.shape != (length,) or array.dtype != dtype:
                raise UsageError(name, f"{array.dtype} {array.shape}", f"{np.dtype(dtype)} ({length},)")

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        _, kernel_height, kernel_width, _ = self.weights.shape
        down = (height + top + bottom - kernel_height) // self.stride + 1
        return down, (width + left + right - kernel_width) // self.stride + 1


def int8_product(
    weight_codes: Array,
    weight_scale: Array,
    bias: Array,
    grid: QuantParams,
    let: tuple[Array, Array] | None = None,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Int8Product:
    """Return a folded layer as the kernels take it.

    weight_codes: int8 (Cout, Cin) or (Cout, Cin, kh, kw), LET's s inside. bias: float32 (Cout,), W d inside.
    let: s and d, float32 (Cin,).
    """
    weights = weight_codes if weight_codes.ndim == 4 else weight_codes[..., None, None]
    product_scale = (weight_scale.astype(np.float64) * grid.scale).astype(np.float32)
    sums = weights.astype(np.int64).sum(axis=(1, 2, 3))
    folded = bias.astype(np.float64) - product_scale.astype(np.float64) * (grid.zero_point - CODE_OFFSET) * sums
    zeros = np.zeros(weights.shape[1], np.float32)
    padded = zeros if let is None else (zeros - let[1]) / let[0]
    pad = (quantize(padded, grid).astype(np.int16) - CODE_OFFSET).astype(np.int8)
    ordered = np.ascontiguousarray(weights.transpose(0, 2, 3, 1))
    return Int8Product(ordered, product_scale, folded.astype(np.float32), pad, stride, padding)


def _finished(sums: Array, product: Int8Product, residual: Array | None) -> Array:
    """Exact integer sums (..., Cout) -> float16; float32 rounding after each step, as the kernels' _rn intrinsics."""
    with np.errstate(over="ignore"):  # beyond fp16's range both give infinity
        values = sums.astype(np.float32) * product.scale + product.bias
        return (values if residual is None else values + residual.astype(np.float32)).astype(np.float16)


def gemm(codes: Array, residual: Array | None, product: Int8Product) -> Array:
    """(M, K) int8, residual (M, N) float16 -> (M, N) float16."""
    # Whole numbers below 2**53: exact in float64, and quick.
    sums = codes.astype(np.float64) @ product.weights[:, 0, 0].astype(np.float64).T
    return _finished(sums, product, residual)


def conv(codes: Array, residual: Array | None, product: Int8Product) -> Array:
    """(N, H, W, Cin) int8, residual (N, H', W', Cout) float16 -> (N, H', W', Cout) float16."""
    pictures, height, width, channels = codes.shape
    top, left, bottom, right = product.padding
    channels_out, kernel_height, kernel_width, _ = product.weights.shape
    padded = np.empty((pictures, height + top + bottom, width + left + right, channels), np.float64)
    padded[:] = product.pad
    padded[:, top : top + height, left : left + width] = codes
    down, across = product.out_size(height, width)
    stride, sums = product.stride, np.zeros((pictures, down, across, channels_out))
    for y in range(kernel_height):
        for x in range(kernel_width):
            window = padded[:, y : y + down * stride : stride, x : x + across * stride : stride]
            sums += window[:, :down, :across] @ product.weights[:, y, x].astype(np.float64).T
    return _finished(sums, product, residual)
