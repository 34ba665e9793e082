"""GroupNorm in the forms that engines run best.

`instance`: Reshape, InstanceNormalization, Reshape, affine. TensorRT's kernels and ONNX Runtime know it.
`statistics`: the groups' means and mean squares come from those of the channels, and what remains is one factor and
one addend a channel:

    y = x f + t,   f = gamma / sqrt(E[x^2] - E[x]^2 + eps),   t = beta - E[x] f

Nothing is reshaped but vectors, so that an engine with channels innermost needs no reorder, and the affine step fuses
with SiLU and the quantizer behind it: docs/performance.md has the measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from intsr.export.graph_builder import GraphBuilder

F32 = NDArray[np.float32]
# In the names of everything between the reductions over x and the affine step: float32 whatever runs around it.
STATISTICS = ".statistics."


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
    """In the lowering's form; the VAE attention's (N, C, tokens) always as `instance`."""
    if b.lowering.group_norm == "statistics" and len(norm.shape) == 4:
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
    """The norm of every channel rather than the sum of its squares: OpenVINO's reduction then reads x as it lies."""
    name, (count, channels, *sides) = norm.name, norm.shape
    inner = f"{name}{STATISTICS}"
    axes = b.constant(f"{name}.axes", [2, 3])
    means = b.op("ReduceMean", [x, axes], f"{name}.means", keepdims=1)
    lengths = b.op("ReduceL2", [x, axes], f"{name}.lengths", keepdims=1)

    def of_groups(value: str, what: str) -> str:
        grouped = b.op("Reshape", [value, b.constant(f"{inner}{what}_shape", grouping)], f"{inner}{what}_grouped")
        return b.op("ReduceMean", [grouped, b.constant(f"{inner}{what}_axis", [2])], f"{inner}{what}", keepdims=1)

    grouping = [count, norm.groups, channels // norm.groups]
    # Before squaring, so that fp16 would hold it too.
    roots = b.op(
        "Mul", [lengths, b.constant(f"{inner}gain", np.float32(1 / math.sqrt(math.prod(sides))))], f"{inner}rms"
    )
    mean = of_groups(means, "mean")
    square = of_groups(b.op("Mul", [roots, roots], f"{inner}squares"), "square")
    variance = b.op("Sub", [square, b.op("Mul", [mean, mean], f"{inner}mean_square")], f"{inner}variance")
    # Rounding may take a constant group below zero.
    variance = b.op("Relu", [variance], f"{inner}positive")
    deviation = b.op(
        "Sqrt",
        [b.op("Add", [variance, b.constant(f"{inner}epsilon", np.float32(norm.epsilon))], f"{inner}guarded")],
        f"{inner}deviation",
    )
    gamma, beta = (v.reshape(1, norm.groups, -1) for v in (norm.gamma, norm.beta))
    factor = b.op("Div", [b.constant(f"{name}.weight", gamma), deviation], f"{inner}factor")
    addend = b.op(
        "Sub", [b.constant(f"{name}.bias", beta), b.op("Mul", [mean, factor], f"{inner}moved")], f"{inner}addend"
    )
    shape = [count, channels, 1, 1]
    factor, addend = (
        b.op("Reshape", [v, b.constant(f"{inner}{n}_shape", shape)], f"{inner}{n}_channels")
        for n, v in (("factor", factor), ("addend", addend))
    )
    return b.op("Add", [b.op("Mul", [x, factor], f"{name}.mul"), addend], f"{name}.add")
