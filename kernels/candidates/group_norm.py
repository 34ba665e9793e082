"""GroupNorm, SiLU, LET and Quantize on NHWC: the reference, and the constants the kernels of group_norm.cu take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.reference.group_norm import CODE_OFFSET, group_norm


@dataclass(frozen=True, slots=True)
class NormQuantize:
    """The operation but for its input; every array is (C,) float32."""

    gamma: Array
    beta: Array
    groups: int
    epsilon: float
    # Whether SiLU follows the norm.
    activation: bool
    # LET's s and d.
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


def group_norm_quantize(x: Array, norm: NormQuantize) -> Array:
    """(N, H, W, C) float16 -> int8 codes of (SiLU(GroupNorm(x)) - d) / s on the grid, same shape, minus 128.

    float64 throughout: a kernel in float32 may fall on the other side of a tie, a code away.
    """
    planes = x.transpose(0, 3, 1, 2)
    y = group_norm(planes, norm.gamma, norm.beta, norm.groups, norm.epsilon, norm.activation).transpose(0, 2, 3, 1)
    scaled = (y - norm.let_shift) / (norm.let_scale.astype(np.float64) * norm.grid.scale)
    codes = np.clip(np.rint(scaled) + norm.grid.zero_point, 0, norm.grid.qmax)
    return (codes - CODE_OFFSET).astype(np.int8)
