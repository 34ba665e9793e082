"""GroupNorm, SiLU, LET and Quantize in one operation: the reference, and the constants the kernels take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.kernels.quantizer import QuantParams

# Engines store a code of [0, 2**bits - 1] as int8: code - 128, whatever the bits.
CODE_OFFSET = 128


@dataclass(frozen=True, slots=True)
class NormQuantize:
    """gamma, beta, let_scale (s), let_shift (d): (C,) float32. activation: whether SiLU follows the norm."""

    gamma: Array
    beta: Array
    groups: int
    epsilon: float
    activation: bool
    let_scale: Array
    let_shift: Array
    grid: QuantParams

    def __post_init__(self) -> None:
        channels = len(self.gamma)
        if channels % self.groups or channels % 8:
            raise UsageError("channels", str(channels), f"a multiple of 8 and of {self.groups} groups")
        for name in ("gamma", "beta", "let_scale", "let_shift"):
            array = getattr(self, name)
            if array.shape != (channels,) or array.dtype != np.float32:
                raise UsageError(name, f"{array.dtype} {array.shape}", f"float32 ({channels},)")

    @property
    def multiplier(self) -> Array:
        """1 / (s D), (C,) float32: LET's division and the quantizer's in one product."""
        return (1.0 / (self.let_scale.astype(np.float64) * self.grid.scale)).astype(np.float32)


def normalized(x: Array, norm: NormQuantize) -> Array:
    """(N, H, W, C) float16 -> SiLU(GroupNorm(x)), same shape, float64; without SiLU where there is none."""
    pictures, height, width, channels = x.shape
    grouped = x.astype(np.float64).reshape(pictures, height * width, norm.groups, channels // norm.groups)
    mean, variance = (function(grouped, axis=(1, 3), keepdims=True) for function in (np.mean, np.var))
    y = ((grouped - mean) / np.sqrt(variance + norm.epsilon)).reshape(x.shape) * norm.gamma + norm.beta
    return y / (1 + np.exp(-np.maximum(y, -80.0))) if norm.activation else y


def group_norm_quantize(x: Array, norm: NormQuantize) -> Array:
    """(N, H, W, C) float16 -> int8 codes of (SiLU(GroupNorm(x)) - d) / s on the grid, same shape, minus 128.

    float64 throughout: a kernel in float32 may fall on the other side of a tie, a code away.
    """
    scaled = (normalized(x, norm) - norm.let_shift) / (norm.let_scale.astype(np.float64) * norm.grid.scale)
    codes = np.clip(np.rint(scaled) + norm.grid.zero_point, 0, norm.grid.qmax)
    return (codes - CODE_OFFSET).astype(np.int8)


def group_norm_plugin(
    x: Array,
    vectors: tuple[Array, Array, Array, Array],
    groups: int,
    epsilon: float,
    activation: bool,
    ends: tuple[int, int] | None,
) -> Array:
    """(N, C, H, W) -> (SiLU(GroupNorm(x)) - shift) * multiplier, as int8 codes within `ends`, else float64.

    vectors: gamma, beta, shift, multiplier, (C,). The operation of group_norm_plugin.cu and of the ONNX operators
    that stand for it. float64 throughout, as `group_norm_quantize`.
    """
    gamma, beta, shift, multiplier = (v.astype(np.float64).reshape(1, -1, 1, 1) for v in vectors)
    grouped = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    mean, variance = (function(grouped, axis=2, keepdims=True) for function in (np.mean, np.var))
    y = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    if activation:
        y = y / (1 + np.exp(-np.maximum(y, -80.0)))
    y = (y - shift) * multiplier
    return y if ends is None else np.clip(np.rint(y), *ends).astype(np.int8)
