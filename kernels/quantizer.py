"""Uniform quantizers: the arithmetic every other place must agree with, in NumPy and in torch.

Unsigned and asymmetric, per tensor, for activations; signed and symmetric, per output channel, for weights.
Rounding is half to even everywhere, as in ONNX's QuantizeLinear and TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# fp16's smallest normal number: a scale below it would lose digits, or vanish, in an fp16 engine.
MIN_SCALE = 2.0**-14
MAX_SCALE = 32768.0
# Weights of so many bits and more lie on symmetric grids. An asymmetric one of 8 does not fit int8, and one of 7 has
# codes above 64, which CPUs without VNNI cannot multiply exactly.
SYMMETRIC_BITS = 7


def round_scale(scale: NDArray[np.float32] | float) -> NDArray[np.float32]:
    """The nearest scale that fp16 represents exactly, float32, within [MIN_SCALE, MAX_SCALE].

    All targets use the rounded scales, so that fp16 and fp32 engines hold the same integers.
    """
    clipped = np.clip(np.asarray(scale, np.float32), MIN_SCALE, MAX_SCALE)
    return clipped.astype(np.float16).astype(np.float32)


def rescale(scale: NDArray[np.float32] | float, factor: NDArray[np.float64] | float) -> NDArray[np.float32]:
    """The scale of what is multiplied by all of `factor` at once: |factor| times as large, and then rounded, once,
    as `round_scale` says, float32. Codes stay what they are (negated by a negative factor).
    """
    exact = np.asarray(scale, np.float64) * np.abs(factor)
    return np.clip(exact, MIN_SCALE, MAX_SCALE).astype(np.float16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class QuantParams:
    """A per-tensor asymmetric grid: real = (code - zero_point) * scale, code in [0, 2**bits - 1].

    zero_point may lie outside the codes where the range does not hold 0 (then 0 has no code of its own).
    """

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is {self.scale}, expected a finite number above 0")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, expected 2 to 8")

    @property
    def qmax(self) -> int:
        return 2**self.bits - 1

    @property
    def real_min(self) -> float:
        return -self.zero_point * self.scale

    @property
    def real_max(self) -> float:
        return (self.qmax - self.zero_point) * self.scale

    @classmethod
    def from_range(cls, x_min: float, x_max: float, bits: int) -> QuantParams:
        """The grid for [x_min, x_max]: D = (x_max - x_min) / (2**b - 1), z = R(x_min / D), zero_point = -z.

        A range of no width (an all-zero tensor) gets the smallest scale instead of a division by zero.
        docs/theory.md, "Quantizers"; the scale is rounded by `round_scale`.
        """
        if not (np.isfinite(x_min) and np.isfinite(x_max) and x_min <= x_max):
            raise ValueError(f"range [{x_min}, {x_max}] is not finite and ordered")
        scale = float(round_scale((x_max - x_min) / (2**bits - 1)))
        return cls(scale, -int(np.rint(x_min / scale)), bits)


def quantize(x: NDArray[np.floating], params: QuantParams) -> NDArray[np.uint8]:
    """Codes in [0, 2**bits - 1], uint8: clamp(R(x / scale) + zero_point). float32 arithmetic, as in ONNX."""
    codes = np.rint(x.astype(np.float32) / np.float32(params.scale)) + params.zero_point
    return np.clip(codes, 0, params.qmax).astype(np.uint8)


def dequantize(codes: NDArray[np.integer], params: QuantParams) -> NDArray[np.float32]:
    """(codes - zero_point) * scale, float32."""
    return (codes.astype(np.int32) - params.zero_point).astype(np.float32) * np.float32(params.scale)


def fake_quantize_torch(x: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """`dequantize(quantize(x))` in torch, same shape and dtype as x."""
    codes = (x / params.scale).round_().add_(params.zero_point).clamp_(0, params.qmax)
    return codes.sub_(params.zero_point).mul_(params.scale)


def quantize_weight(weight: NDArray[np.floating], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric per output channel (axis 0): codes int8 in [-(2**(b-1) - 1), 2**(b-1) - 1], scales float32 (Cout,).

    weight = codes * scale. The lowest code is left out, so that negating a channel negates its codes.
    """
    qmax = 2 ** (bits - 1) - 1
    rows = weight.reshape(weight.shape[0], -1).astype(np.float32)
    scale = round_scale(np.abs(rows).max(axis=1) / qmax)
    codes = np.clip(np.rint(rows / scale[:, None]), -qmax, qmax).astype(np.int8)
    return codes.reshape(weight.shape), scale


def quantize_weight_in_range(
    weight: NDArray[np.floating], low: NDArray[np.floating], high: NDArray[np.floating], bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Per output channel (axis 0) on learned ranges [low, high], float (Cout,): int8 codes, float32 scales (Cout,).

    Up to 6 bits the asymmetric grid as it is: z = R(low / D), n = clamp(R(w / D), z, z + 2**b - 1). n is a
    signed integer within 63 as the range holds 0 (it is widened to), so no zero-point is needed. At 7 and 8 bits
    symmetric, D = max(-low, high) / (2**(b - 1) - 1). docs/theory.md, "Exact lowerings".
    """
    low, high = np.minimum(low, 0).astype(np.float32), np.maximum(high, 0).astype(np.float32)
    rows = weight.reshape(weight.shape[0], -1).astype(np.float32)
    if bits >= SYMMETRIC_BITS:
        last = np.full(len(low), 2 ** (bits - 1) - 1, np.float32)
        scale, first = round_scale(np.maximum(-low, high) / last), -last
    else:
        scale = round_scale((high - low) / (2**bits - 1))
        first = np.rint(low / scale)
        last = first + np.float32(2**bits - 1)
    codes = np.clip(np.rint(rows / scale[:, None]), first[:, None], last[:, None]).astype(np.int8)
    return codes.reshape(weight.shape), scale


def dequantize_weight(codes: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """codes * scale along axis 0, float32."""
    return codes.astype(np.float32) * scale.reshape(-1, *[1] * (codes.ndim - 1))
