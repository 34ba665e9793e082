"""The operation of group_norm_plugin.cu, and of the ONNX operators that stand for it, in float64."""

from __future__ import annotations

import numpy as np

from intsr.arrays import Array
from intsr.kernels.launches.group_norm_plugin import PluginNorm


def group_norm_plugin(x: Array, vectors: tuple[Array, Array, Array, Array], norm: PluginNorm, codes: bool) -> Array:
    """(N, C, H, W) -> (SiLU(GroupNorm(x)) - shift) * multiplier, float64; int8 within the norm's range for `codes`.

    vectors: gamma, beta, shift, multiplier, (C,). A kernel in float32 may fall on the other side of a tie.
    """
    gamma, beta, shift, multiplier = (vector.astype(np.float64).reshape(1, -1, 1, 1) for vector in vectors)
    grouped = x.astype(np.float64).reshape(x.shape[0], norm.groups, -1)
    mean, variance = (function(grouped, axis=2, keepdims=True) for function in (np.mean, np.var))
    y: Array = ((grouped - mean) / np.sqrt(variance + norm.epsilon)).reshape(x.shape) * gamma + beta
    if norm.activation:
        y = y / (1 + np.exp(-np.maximum(y, -80.0)))
    y = (y - shift) * multiplier
    return np.clip(np.rint(y), norm.lowest, norm.highest).astype(np.int8) if codes else y
