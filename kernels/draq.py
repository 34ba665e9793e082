"""DRAQ, LSGQuant's quantizer of a transformer's activations, in three forms: what is found as it runs, what before.

x: (tokens, channels), rotated. Q = 2**(b - 1) - 1, codes -Q to Q; channels' factors s_i, tokens' factors d_t:

    dynamic            s_i = max over tokens |x_ti|      d_t = max over channels |x_ti| / s_i
    static channels    s_i known before                  d_t as above
    static             s_i known before                  one d for all tokens, known before

    x^_ti = clamp(R(Q x_ti / (s_i d_t)), -Q, Q) s_i d_t / Q

A product sum_i q_ti s_i d_t w_ni is one of integers where s_i is in the weights: known before. A target that
multiplies rows by what it finds can do the second form; QDQ, and so every target here, the third, which is the grid
of `quantizer` over x / s. docs/theory.md, "LSGQuant".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

STATIC, STATIC_CHANNELS, DYNAMIC = "static", "static channels", "dynamic"
# The least factor: of channels and tokens that are zero.
FLOOR = 1e-6
Array = NDArray[np.float32]


def quantize_dynamic(x: Array, bits: int) -> Array:
    """x^ of (tokens, channels) with every factor found in x itself."""
    return quantize_static_channels(x, np.abs(x).max(axis=0), bits)


def quantize_static_channels(x: Array, s: Array, bits: int) -> Array:
    """x^ with s, (channels,), given, and d found for every token."""
    s = np.maximum(s, FLOOR)
    return quantize_static(x, s, np.abs(x / s).max(axis=1, keepdims=True), bits)


def quantize_static(x: Array, s: Array, d: Array | float, bits: int) -> Array:
    """x^ with s, (channels,), and d, a number or (tokens, 1), given."""
    largest = 2 ** (bits - 1) - 1
    d = np.maximum(d, FLOOR)
    codes = np.clip(np.rint(largest * (x / s) / d), -largest, largest)
    return (codes * d * s / largest).astype(np.float32)


def quantize_tokens_torch(x: torch.Tensor, bits: int, online_channels: bool) -> torch.Tensor:
    """x^ of (N, tokens, channels) in torch, with the identity's gradient; factors of each of the N by themselves.

    online_channels: the dynamic form; else x is x / s already, and so is what is returned.
    """
    import torch

    with torch.no_grad():
        largest = 2 ** (bits - 1) - 1
        s = x.abs().amax(-2, keepdim=True).clamp_min(FLOOR) if online_channels else x.new_ones(())
        d = (x / s).abs().amax(-1, keepdim=True).clamp_min(FLOOR)
        codes = (largest * (x / s) / d).round_().clamp_(-largest, largest)
        error = codes * d * s / largest - x
    return x + error
