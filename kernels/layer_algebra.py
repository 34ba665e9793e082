"""The algebra of one quantized layer, in torch: what calibration simulates, folding writes and the report measures.

    x~ = (x - d) / s,   W~ = s W,   b~ = b + W d        (per input channel; W x + b = W~ x~ + b~)

A convolution's zero padding is of x, not of x~: with a shift d it comes before the shift. Weights of 8 and 7 bits lie
on symmetric grids, codes -127 to 127 and -63 to 63 (`SYMMETRIC_BITS`); those of fewer bits on
[z D, (z + 2**b - 1) D]. docs/theory.md, "LET" and "Quantizers".

A branch of small rank, L = up down, reads x itself and leaves s (W - L) to the integers:

    W x + b = s (W - L) x~ + L x + b + (W - L) d
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from intsr.kernels.learned_range import quantize_in_range, quantize_symmetric, round_scale_torch
from intsr.kernels.quantizer import SYMMETRIC_BITS

Layer: TypeAlias = nn.Conv2d | nn.Conv3d | nn.Linear


def over_inputs(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Reshape (Cin,) so that it multiplies the input channels of `weight`, (Cout, Cin, kh, kw) or (out, in)."""
    return values.reshape(1, -1, *[1] * (weight.ndim - 2))


def over_outputs(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Reshape (Cout,) so that it multiplies the output channels of `weight`."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))


def over_channels(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """Reshape (C,) so that it multiplies the channels of x, which are on `axis`."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def channel_axis(layer: Layer) -> int:
    """Return the axis of a layer's input that its channels are on."""
    return -1 if isinstance(layer, nn.Linear) else 1


def scaled_weight(weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """W~ = s W."""
    return weight * over_inputs(s, weight)


def shifted_bias(bias: torch.Tensor | None, weight: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """b~ = b + W d, (Cout,)."""
    shift = (weight * over_inputs(d, weight)).flatten(1).sum(1)
    return shift if bias is None else bias + shift


def transform(x: torch.Tensor, s: torch.Tensor | None, d: torch.Tensor | None, axis: int) -> torch.Tensor:
    """x~ = (x - d) / s, x's shape; None leaves that step out."""
    if d is not None:
        x = x - over_channels(d, x, axis)
    return x if s is None else x / over_channels(s, x, axis)


def padding_before_shift(layer: Layer) -> tuple[int, ...]:
    """Return what `functional.pad` takes where a layer's input is padded before its shift; () for a linear layer."""
    if isinstance(layer, nn.Linear):
        return ()
    assert isinstance(layer, nn.Conv2d), "no shift in three dimensions"
    assert isinstance(layer.padding, tuple)
    top, left = layer.padding
    return (left, left, top, top)


def run_layer(
    layer: Layer,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padded: bool = False,
) -> torch.Tensor:
    """The layer's product with another weight and bias. padded: x is padded already."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    if isinstance(layer, nn.Conv3d):
        return functional.conv3d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    padding = (0, 0) if padded else layer.padding
    return functional.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def branch_weight(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """L = up down, the layer's shape. up: (Cout, r). down: (r, Cin, kh, kw) or (r, in)."""
    return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def run_branch(layer: Layer, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """up (down x), a layer's output without bias; down slides as the layer does."""
    assert not isinstance(layer, nn.Conv3d), "no branch in three dimensions"
    if isinstance(layer, nn.Linear):
        return functional.linear(functional.linear(x, down), up)
    y = functional.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
    return functional.conv2d(y, up[:, :, None, None])


def row_range(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each output channel's smallest and largest weight, and 0, (Cout,) each."""
    rows = weight.flatten(1)
    return rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)


def weight_range(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that a grid of `bits` bits has where [low, high] is asked for: 0 is in it."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if bits < SYMMETRIC_BITS:
        return low, high
    amax = torch.maximum(-low, high)
    return -amax, amax


def weight_grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(D, first code, number of steps) of a range that `weight_range` gave."""
    if bits >= SYMMETRIC_BITS:
        most = 2 ** (bits - 1) - 1
        scale = round_scale_torch(torch.maximum(-low, high) / most)
        return scale, torch.full_like(scale, -most), 2 * most
    steps = 2**bits - 1
    scale = round_scale_torch((high - low) / steps)
    return scale, (low / scale).round(), steps


def fake_quantize_weight(weight: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    """Q(W~) on the grids of [low, high], of the weight's rank each: its shape, with gradients for the ends."""
    if bits >= SYMMETRIC_BITS:
        return quantize_symmetric(weight, torch.maximum(-low, high), bits)
    return quantize_in_range(weight, low, high, bits)
