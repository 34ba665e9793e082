"""GroupNorm in the forms that engines run best.

`instance`: Reshape, InstanceNormalization, Reshape, affine. TensorRT's kernels and ONNX Runtime know it.
`statistics`: the groups' moments come from those of the channels, and what remains is one factor and one addend a
channel. Everything is reckoned from p_c, the mean of the channel's middle row, which the norm takes away again:

    d = x - p_c,   m_c = E[d],   v_c = E[d^2] - m_c^2                       of each channel, over its pixels
    M = E[p_c + m_c],   V = E[v_c + (p_c + m_c - M)^2]                      of each group, over its channels
    y = d f + t,   f = gamma / sqrt(V + eps),   t = beta + (p_c - M) f

On a flat tile d is nearly 0 where x is not: without p_c, E[x^2] - E[x]^2 would leave no digit of the variance, and
x f none of y. |E[d]|^2 is at most V times the number of rows, as the middle row is one of them. Nothing is reshaped
but vectors, so that an engine with channels innermost needs no reorder, and the affine step fuses with SiLU and the
quantizer behind it: docs/measure/performance.md has the measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from intsr.targets.lowering import STATISTICS

if TYPE_CHECKING:
    from intsr.export.onnx.builder import GraphBuilder

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """shape: of x, (N, C, ...). gamma, beta: (C,)."""

    name: str
    shape: tuple[int, ...]
    groups: int
    gamma: F32
    beta: F32
    epsilon: float

    @property
    def channels(self) -> tuple[int, ...]:
        return (1, -1, *[1] * (len(self.shape) - 2))


def write_group_norm(b: GraphBuilder, x: str, norm: GroupNorm) -> str:
    """In the lowering's form."""
    if b.lowering.group_norm == "statistics":
        return _statistics(b, x, norm)
    return _instance(b, x, norm)


def _instance(b: GraphBuilder, x: str, norm: GroupNorm) -> str:
    name = norm.name
    grouped = b.op("Reshape", [x, b.constant(f"{name}.grouped", [norm.shape[0], norm.groups, -1])], f"{name}.in")
    ones, zeros = (
        b.constant(f"{name}.{n}", np.full(norm.groups, v, np.float32)) for n, v in (("one", 1), ("zero", 0))
    )
    normed = b.op("InstanceNormalization", [grouped, ones, zeros], name, epsilon=norm.epsilon)
    back = b.op("Reshape", [normed, b.constant(f"{name}.shape", list(norm.shape))], f"{name}.out")
    scaled = b.op("Mul", [back, b.constant(f"{name}.weight", norm.gamma.reshape(norm.channels))], f"{name}.mul")
    return b.op("Add", [scaled, b.constant(f"{name}.bias", norm.beta.reshape(norm.channels))], f"{name}.add")


def _statistics(b: GraphBuilder, x: str, norm: GroupNorm) -> str:
    name, (count, channels, *sides) = norm.name, norm.shape
    inner = f"{name}{STATISTICS}"
    grouping = [count, norm.groups, channels // norm.groups]

    def vector(op_type: str, inputs: list[str], what: str, **attributes: int) -> str:
        return b.op(op_type, inputs, f"{inner}{what}", **attributes)

    def ints(values: list[int], what: str) -> str:
        return b.constant(f"{inner}{what}", values)

    def grouped(value: str, what: str) -> str:
        return vector("Reshape", [value, ints(grouping, f"{what}_grouping")], f"{what}_grouped")

    def of_channels(value: str, what: str) -> str:
        shape = ints([count, channels, *[1] * len(sides)], f"{what}_shape")
        return vector("Reshape", [value, shape], f"{what}_channels")

    def of_groups(value: str, what: str) -> str:
        return vector("ReduceMean", [value, ints([2], f"{what}_axis")], what, keepdims=1)

    def over_pixels(op_type: str, value: str, gain: float, what: str) -> str:
        """Along rows first, which OpenVINO does at twice the speed; `gain` keeps it from merging the two into one."""
        value = b.op(
            op_type, [value, ints([len(sides) + 1], f"{what}_row_axis")], f"{name}.{what}_of_rows", keepdims=1
        )
        value = vector("Mul", [value, b.constant(f"{inner}{what}_gain", np.float32(gain))], f"{what}_scaled")
        return value if len(sides) == 1 else vector(op_type, [value, ints([2], f"{what}_axis")], what, keepdims=1)

    pivot = _middle_row(b, x, norm)
    moved = b.op("Sub", [x, pivot], f"{name}.moved")
    pixels = math.prod(sides)
    # Halves and doubles are exact.
    half = over_pixels("ReduceMean", moved, 0.5, "half_mean")
    mean = grouped(vector("Add", [half, half], "mean"), "mean")
    # Roots, so that fp16 would hold them too.
    root = grouped(over_pixels("ReduceL2", moved, 1 / math.sqrt(pixels), "root"), "root")
    squares = (vector("Mul", [value, value], f"{what}_square") for value, what in ((root, "root"), (mean, "mean")))
    # Rounding may take a constant channel below zero.
    spread = vector("Relu", [vector("Sub", list(squares), "spread")], "positive_spread")
    pivots = grouped(pivot, "pivot")
    offset = vector("Sub", [pivots, of_groups(pivots, "pivot_mean")], "offset")
    place = vector("Add", [offset, mean], "place")
    centre = of_groups(place, "centre")
    apart = vector("Sub", [place, centre], "apart")
    both = vector("Add", [spread, vector("Mul", [apart, apart], "apart_square")], "both")
    guarded = vector(
        "Add", [of_groups(both, "variance"), b.constant(f"{inner}epsilon", np.float32(norm.epsilon))], "guarded"
    )
    gamma, beta = (v.reshape(1, norm.groups, -1) for v in (norm.gamma, norm.beta))
    factor = vector("Div", [b.constant(f"{name}.weight", gamma), vector("Sqrt", [guarded], "deviation")], "factor")
    step = vector("Mul", [vector("Sub", [offset, centre], "step"), factor], "step_scaled")
    addend = vector("Add", [b.constant(f"{name}.bias", beta), step], "addend")
    scaled = b.op("Mul", [moved, of_channels(factor, "factor")], f"{name}.mul")
    return b.op("Add", [scaled, of_channels(addend, "addend")], f"{name}.add")


def _middle_row(b: GraphBuilder, x: str, norm: GroupNorm) -> str:
    """Its mean for each channel, (N, C, 1, ...); of tokens (N, C, T) the middle sqrt(T) of them.

    Not among STATISTICS: what is taken from x in bf16, and what the vectors reckon with, must be one number.
    """
    inner, sides = f"{norm.name}{STATISTICS}", norm.shape[2:]
    length = 1 if len(sides) == 2 else math.isqrt(sides[0])
    start = (sides[0] - length) // 2
    bounds = (b.constant(f"{inner}row_{n}", [v]) for n, v in (("start", start), ("end", start + length), ("axis", 2)))
    row = b.op("Slice", [x, *bounds], f"{norm.name}.row")
    axes = b.constant(f"{inner}row_axes", list(range(2, len(norm.shape))))
    return b.op("ReduceMean", [row, axes], f"{norm.name}.pivot", keepdims=1)
