"""Grids of simulated layers are those that engines get: inputs, weights, and codes where rounding is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intsr.calib.learn.input_grid import MIN_WIDTH, GridSpec, InputGrid
from intsr.calib.learn.quantized_layer import QuantizedLayer
from intsr.calib.methods.efficientdm import LowRankChange
from intsr.calib.methods.qdiffusion import LearnedRounding
from intsr.kernels.quantizer import (
    MIN_SCALE,
    dequantize_weight,
    fake_quantize_torch,
    quantize_weight,
    quantize_weight_in_range,
    round_scale,
)

seeds = st.integers(0, 2**20)


def grid_of(bits: int, symmetric: bool = False, holds_zero: bool = False) -> InputGrid:
    return InputGrid(GridSpec(3, 1, bits, symmetric, holds_zero, False, None)).requires_grad_(False)


@given(
    bits=st.integers(2, 8),
    first=st.integers(-300, 100),
    fraction=st.floats(-0.4, 0.4),
    scale=st.floats(1e-3, 10),
    holds_zero=st.booleans(),
    seed=seeds,
)
@settings(max_examples=80, deadline=None)
def test_an_input_s_grid_is_the_engine_s(
    bits: int, first: int, *, fraction: float, scale: float, holds_zero: bool, seed: int
) -> None:
    """What training computes, and what an engine computes from the two numbers that are kept."""
    grid = grid_of(bits, holds_zero=holds_zero)
    if holds_zero:
        first = max(min(first, 0), 1 - 2**bits)
        fraction = 0.0
    # A range with D = scale: no other rounding of D is near, in float32 or in float64.
    low, high = (code * float(round_scale(scale)) for code in (first + fraction, first + fraction + 2**bits - 1))
    grid.set_range(low, high)
    layer = QuantizedLayer("site", nn.Conv2d(3, 2, 1), grid, 8)
    quantizer = layer.site_quantizer()
    assert (quantizer.activation_bits, quantizer.weight_bits, quantizer.let_scale) == (bits, 8, None)
    params = quantizer.activation_params()
    assert params.scale == float(round_scale(scale)) and params.zero_point == -first
    middle, width = (low + high) / 2, max(high - low, MIN_WIDTH)
    x = middle + width * torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(grid.quantize(x), fake_quantize_torch(x, params), rtol=1e-6, atol=1e-6 * params.scale)


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-2, 2), st.floats(-2, 2), st.integers(2, 8))
@settings(max_examples=80, deadline=None)
def test_learned_ends_stay_admissible(a: float, b: float, low: float, high: float, bits: int) -> None:
    """However far training pushes them."""
    for symmetric, holds_zero in ((False, False), (False, True), (True, False)):
        grid = grid_of(bits, symmetric, holds_zero)
        grid.set_range(min(a, b), max(a, b))
        grid.low.fill_(low)
        grid.high.fill_(high)
        ends = [float(end) for end in grid.range()]
        assert ends[1] - ends[0] >= MIN_WIDTH * (1 - 1e-3)
        if holds_zero:
            assert ends[0] <= 0 <= ends[1]
        params = QuantizedLayer("site", nn.Conv2d(3, 2, 1), grid, 8).site_quantizer().activation_params()
        if symmetric and params.scale > MIN_SCALE:
            assert params.zero_point == 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_symmetric_range_is_the_one_asked_for(bits: int) -> None:
    """(-r, r) as the search gives it, and the ends of such a grid as LSQ's rule gives them: r is the last code."""
    half = 2 ** (bits - 1)
    grid = grid_of(bits, symmetric=True)
    for low in (-2.0, -2.0 * half / (half - 1)):
        grid.set_range(low, 2.0)
        assert [float(end) for end in grid.range()] == pytest.approx([-2.0 * half / (half - 1), 2.0])


def weight_layer(weight: torch.Tensor, bits: int) -> QuantizedLayer:
    layer = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2:], bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    return QuantizedLayer("site", layer, grid_of(8), bits).requires_grad_(False)


@given(st.integers(2, 8), seeds)
@settings(max_examples=60, deadline=None)
def test_weights_are_those_that_folding_makes(bits: int, seed: int) -> None:
    """The same float32 arithmetic in torch and in NumPy: to the last bit, rows of one sign and of zeros included."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, 2, 2, generator=generator) * torch.logspace(0, 2, 6).reshape(-1, 1, 1, 1)
    weight[1], weight[2], weight[3] = weight[1].abs(), -weight[2].abs(), 0
    rows = weight.flatten(1)
    shrink = torch.rand(2, 6, generator=generator) * 0.4 + 0.6
    layer = weight_layer(weight, bits)
    layer.set_weight_range(rows.amin(1) * shrink[0], rows.amax(1) * shrink[1])
    learned = layer.site_quantizer()
    assert learned.weight_low is not None and learned.weight_high is not None and learned.weight_codes is None
    held = dequantize_weight(*quantize_weight_in_range(weight.numpy(), learned.weight_low, learned.weight_high, bits))
    np.testing.assert_array_equal(layer.quantized_weight().numpy(), held)
    layer.dynamic_weights = True
    if bits == 8:
        held = dequantize_weight(*quantize_weight(weight.numpy(), 8))
        np.testing.assert_array_equal(layer.quantized_weight().numpy(), held)


def test_a_row_of_tiny_weights_is_symmetric_too() -> None:
    """A learned reach so small that D is fp16's smallest: codes -127 to 127 in training as in engines."""
    weight = torch.tensor([-0.006, 0.006, 0.001, -0.001]).reshape(1, 1, 2, 2)
    layer = weight_layer(weight, 8)
    layer.set_weight_range(torch.tensor([-0.003]), torch.tensor([0.003]))
    ends = (np.full(1, end, np.float32) for end in (-0.003, 0.003))
    held = dequantize_weight(*quantize_weight_in_range(weight.numpy(), *ends, 8))
    np.testing.assert_array_equal(layer.quantized_weight().numpy(), held)


@given(st.integers(2, 8), st.booleans(), seeds)
@settings(max_examples=40, deadline=None)
def test_codes_are_kept_where_rounding_or_weights_are_learned(bits: int, low_rank: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(5, 3, 2, 2)
    layer = weight_layer(weight, bits)
    rows = weight.flatten(1)
    layer.set_weight_range(rows.amin(1) * 0.9, rows.amax(1) * 0.8)
    if low_rank:
        layer.weight_change = LowRankChange(torch.randn(5, 2) * 0.1, torch.randn(2, 12) * 0.1)
    else:
        layer.rounding = LearnedRounding(torch.randn_like(weight))
    quantizer = layer.site_quantizer()
    assert quantizer.weight_low is None and not layer.hard_rounding
    layer.hard_rounding = True
    assert quantizer.weight_codes is not None and quantizer.weight_scale is not None
    held = dequantize_weight(quantizer.weight_codes, quantizer.weight_scale)
    np.testing.assert_array_equal(layer.quantized_weight().detach().numpy(), held)
    steps = np.ptp(quantizer.weight_codes.reshape(5, -1).astype(int), axis=1)
    assert steps.max() <= (254 if bits == 8 else 2**bits - 1)
    if not low_rank:
        # Each weight at one of the two codes around it, or at an end.
        moved = np.abs(held - weight.numpy()) < quantizer.weight_scale.reshape(-1, 1, 1, 1)
        assert moved.mean() > 0.5
