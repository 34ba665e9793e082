"""Layers cut into pieces that each run in integers, as modules that the lowering can walk.

    y = sum_c conv(Q_c(x~_c), n_c D_c) + conv([S_0, S_1, 1], R) + bias

An asymmetric 8-bit weight is (n + k) D with n in int8 and one k an output channel. What k owes is k D times the sum
of the piece's inputs, S_c = sum_i Q_c(x~_c)_i, under the kernel's window: one more, narrow, float convolution. Its
kernel R also carries the shift o of a zero-padded convolution, conv0(o 1, W) = conv0(1, sum_i W_i o_i), borders too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.passionsr.forward import halves, round_half_away, weight_codes
from intsr.calib.passionsr.types import PassionSRLayer
from intsr.kernels.layer_algebra import channel_axis, over_outputs, scaled_weight, shifted_bias
from intsr.kernels.quantizer import QuantParams

INT8_REACH = 128


@torch.library.custom_op("intsr::fake_quantize", mutates_args=())
def fake_quantize(x: torch.Tensor, scale: float, zero_point: int, bits: int) -> torch.Tensor:
    """x on a grid, same shape and dtype, halves away from zero: a node of the trace that is lowered to Q and DQ."""
    codes = (round_half_away(x / scale) + zero_point).clamp_(0, 2**bits - 1)
    return codes.sub_(zero_point).mul_(scale)


@fake_quantize.register_fake
def _(x: torch.Tensor, scale: float, zero_point: int, bits: int) -> torch.Tensor:
    return torch.empty_like(x)


def on_grid(x: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """`fake_quantize` with the grid as one value."""
    y: torch.Tensor = fake_quantize(x, params.scale, params.zero_point, params.bits)
    return y


def exact_grid(low: float, high: float, bits: int) -> QuantParams:
    """PassionSR's grid of a range: D in float64, then float32, not rounded any further; halves away from zero."""
    step = (high - low) / (2**bits - 1)
    first = round_half_away(torch.tensor(low / step, dtype=torch.float64))
    return QuantParams(float(np.float32(step)), -int(first), bits)


@dataclass(frozen=True, slots=True)
class Piece:
    """Integer weights of some input channels: W s = (codes + offset) * scale; offset, scale: (Cout,)."""

    codes: NDArray[np.int8]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]


def split_weight(weight: torch.Tensor, quantizer: PassionSRLayer, rows: int) -> list[Piece]:
    """The pieces of W s, first `rows` output channels. An offset is 0 where int8 holds the row's grid as it is."""
    low, high = (torch.tensor(ends) for ends in (quantizer.weight_low, quantizer.weight_high))
    last, pieces = 2**quantizer.weight_bits - 1, []
    for (codes, step), ends in zip(weight_codes(weight, quantizer), zip(low, high, strict=True), strict=True):
        first = round_half_away(ends[0] / ((ends[1] - ends[0]) / last))
        fits = (first >= -INT8_REACH) & (first + last < INT8_REACH)
        offset = torch.where(fits, 0.0, first + 2 ** (quantizer.weight_bits - 1))
        stored = codes - over_outputs(offset, weight)
        arrays = (stored.numpy().astype(np.int8), offset.numpy(), step.flatten().numpy())
        pieces.append(Piece(*(array[:rows] for array in arrays)))
    return pieces


class SplitLayer(nn.Module):
    """One layer of PassionSR: (N, C, H, W) or (N, tokens, C) -> the layer's output times `factor`.

    weights: of each piece, for as many output channels as the layer keeps. bias: added to the output, (rows,) or
    None, quantized already. divisor: what the input is divided by first.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        quantizer: PassionSRLayer,
        weights: Sequence[Piece],
        *,
        bias: torch.Tensor | None,
        divisor: float = 1.0,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.divisor, self.factor, self.adds = divisor, factor, not quantizer.convolution
        self.is_convolution = isinstance(layer, nn.Conv2d)
        self.axis = channel_axis(layer)
        channels = (1, -1, 1, 1) if self.is_convolution else (-1,)
        offset = torch.tensor(quantizer.offset)
        self.register_buffer("scale", torch.tensor(quantizer.scale).reshape(channels))
        self.register_buffer("offset", offset.reshape(channels))
        ranges: Any = zip(quantizer.input_low, quantizer.input_high, strict=True)
        self.grids = [exact_grid(float(low), float(high), quantizer.activation_bits) for low, high in ranges]
        self.cuts = halves(layer.weight.shape[1], len(quantizer.weight_low))
        weight = layer.weight[: len(weights[0].codes)]
        shift = scaled_weight(weight, offset)
        self.has_border = isinstance(layer, nn.Conv2d) and any(layer.padding) and bool(shift.any())
        if not self.has_border:
            bias = shifted_bias(bias, weight, offset)
        # One number stands for all of a piece's weights: they are there for their shape. NaN says where one is read.
        shapes = [torch.full((), torch.nan).expand(piece.codes.shape) for piece in weights]
        self.pieces = nn.ModuleList(_like(layer, shape, None if i else bias) for i, shape in enumerate(shapes))
        self.summed = [i for i, piece in enumerate(weights) if piece.offset.any()]
        columns = [over_outputs(torch.from_numpy(weights[i].offset * weights[i].scale), shift) for i in self.summed]
        kernels = [column.expand(-1, 1, *shift.shape[2:]) for column in columns]
        if self.has_border:
            kernels.append(shift.sum(1, keepdim=True))
        self.rest = _like(layer, torch.cat(kernels, dim=1), None) if kernels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.divisor != 1.0:
            x = x / self.divisor
        x = (x + self.offset if self.adds else x - self.offset) / self.scale
        if self.is_convolution or len(self.grids) == 1:
            pairs = zip(self.cuts, self.grids, strict=True)
            y = self._product([on_grid(self._cut(x, cut), grid) for cut, grid in pairs])
        else:
            parts = []
            for tokens, grid in zip(halves(x.shape[1], 2), self.grids, strict=True):
                part = on_grid(x[:, tokens], grid)
                parts.append(self._product([self._cut(part, cut) for cut in self.cuts]))
            y = torch.cat(parts, dim=1)
        return y if self.factor == 1.0 else y * self.factor

    def _cut(self, x: torch.Tensor, cut: slice) -> torch.Tensor:
        return x if len(self.cuts) == 1 else x.narrow(self.axis, cut.start, cut.stop - cut.start)

    def _product(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        y: torch.Tensor = self.pieces[0](inputs[0])
        for piece, x in zip(self.pieces[1:], inputs[1:], strict=True):
            y = y + piece(x)
        if self.rest is None:
            return y
        columns = [inputs[i].sum(self.axis, keepdim=True) for i in self.summed]
        if self.has_border:
            # Made from the input, so that no engine keeps the whole map as a constant.
            columns.append(inputs[0].narrow(1, 0, 1) * 0.0 + 1.0)
        return y + self.rest(torch.cat(columns, dim=self.axis) if len(columns) > 1 else columns[0])


def _like(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """A layer that slides like `layer`, with other channels."""
    rows, columns = weight.shape[:2]
    with torch.device("meta"):
        if isinstance(layer, nn.Linear):
            made: nn.Conv2d | nn.Linear = nn.Linear(columns, rows, bias is not None)
        else:
            settings: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            made = nn.Conv2d(columns, rows, *settings, bias=bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
