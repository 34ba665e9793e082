"""GroupNorm with SiLU, and the operation of the TensorRT plugin, in float64."""

from __future__ import annotations

import numpy as np

from intsr.arrays import Array

# Engines store a code of [0, 2**bits - 1] as int8: code - 128, whatever the bits.
CODE_OFFSET = 128


def group_norm(x: Array, gamma: Array, beta: Array, groups: int, epsilon: float, activation: bool) -> Array:
    """(N, C, H, W) -> SiLU(GroupNorm(x)), same shape, float64; without SiLU where there is none."""
    grouped = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    mean, variance = (function(grouped, axis=2, keepdims=True) for function in (np.mean, np.var))
    normalized = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    y: Array = normalized * gamma.astype(np.float64).reshape(1, -1, 1, 1) + beta.reshape(1, -1, 1, 1)
    return y / (1 + np.exp(-np.maximum(y, -80.0))) if activation else y


def group_norm_plugin(
    x: Array,
    vectors: tuple[Array, Array, Array, Array],
    groups: int,
    epsilon: float,
    activation: bool,
    code_range: tuple[int, int] | None,
) -> Array:
    """(N, C, H, W) -> (SiLU(GroupNorm(x)) - shift) * multiplier, as int8 codes within `code_range`, else float64.

    vectors: gamma, beta, shift, multiplier, (C,). The operation of group_norm_plugin.cu and of the ONNX operators
    that stand for it. A kernel in float32 may fall on the other side of a tie, a code away.
    """
    gamma, beta, shift, multiplier = vectors
    y = group_norm(x, gamma, beta, groups, epsilon, activation)
    y = (y - shift.reshape(1, -1, 1, 1)) * multiplier.astype(np.float64).reshape(1, -1, 1, 1)
    return y if code_range is None else np.clip(np.rint(y), *code_range).astype(np.int8)
