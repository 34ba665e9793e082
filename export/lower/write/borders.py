"""The correction that a zero-padded convolution needs at its border when its input is shifted.

The engine's convolution pads with the integer 0, which stands for the value c (docs/theory.md, "Borders"), and adds
c sum(W) as bias: right inside, wrong where the window hangs over the border. There the padding is of x, so that the
layer's input is x0 (0, or what a LET makes of it, rounded to its grid). Exactly:

    y = conv(q' D)  +  b  +  sum over taps inside the picture of W c  +  sum over taps outside of W x0

A tap (i, j) is inside for a given output pixel by its row and its column alone, so the sums depend on few different
columns: the left edge, the middle, the right edge. Each such class has one bias per channel and row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution's geometry: (height, width), and of `pads` (top, left, bottom, right). size: of x, unpadded.

    frame: of `pads`' order, padding that several convolutions of one x share, each of which takes its `pads` of it.
    frames: of a convolution of frames, kernel, stride and dilation along them; they are never padded.
    """

    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    frame: tuple[int, int, int, int] | None = None
    frames: tuple[int, int, int] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of ONNX's Conv."""
        along = [] if self.frames is None else [[value] for value in self.frames]
        taps, stride, dilation = along or [[], [], []]
        unpadded = [0] * len(taps)
        return {
            "kernel_shape": [*taps, *self.kernel],
            "strides": [*stride, *self.stride],
            "pads": [*unpadded, *self.pads[:2], *unpadded, *self.pads[2:]],
            "dilations": [*dilation, *self.dilation],
            "group": self.groups,
        }

    def taps_inside(self, axis: int) -> NDArray[np.bool_]:
        """(taps, output pixels) along one axis: whether the tap reads the picture, not its padding."""
        before, after = self.pads[axis], self.pads[axis + 2]
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        count = (self.size[axis] + before + after - reach - 1) // self.stride[axis] + 1
        offsets = np.arange(self.kernel[axis]) * self.dilation[axis] - before
        position = offsets[:, None] + np.arange(count) * self.stride[axis]
        inside: NDArray[np.bool_] = (position >= 0) & (position < self.size[axis])
        return inside


@dataclass(frozen=True, slots=True)
class ColumnBias:
    """columns: bool (W,), where it holds. bias: float32 (Cout, H)."""

    columns: NDArray[np.bool_]
    bias: NDArray[np.float32]


def border_bias(
    weight: NDArray[np.floating[Any]],
    bias: NDArray[np.float32] | None,
    inside: float,
    outside: NDArray[np.float32],
    window: Window,
) -> tuple[ColumnBias, ...]:
    """The bias of every class of columns, the most frequent class first.

    weight: (Cout, Cin, kh, kw), dequantized. inside: c. outside: x0, (Cin,) or (1,).
    """
    kernel = weight.astype(np.float64)
    per_tap_inside = inside * kernel.sum(axis=1)
    per_tap_outside = (kernel * outside.astype(np.float64).reshape(1, -1, 1, 1)).sum(axis=1)
    start = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    start = start + per_tap_outside.sum(axis=(1, 2))
    rows, columns = window.taps_inside(0), window.taps_inside(1)
    patterns, of_column, counts = np.unique(columns, axis=1, return_inverse=True, return_counts=True)
    result = []
    for index in np.argsort(-counts, kind="stable"):
        sums = np.einsum("oij,ih,j->oh", per_tap_inside - per_tap_outside, rows, patterns[:, index])
        result.append(ColumnBias(of_column.reshape(-1) == index, (start[:, None] + sums).astype(np.float32)))
    return tuple(result)
