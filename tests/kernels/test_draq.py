"""DRAQ's three forms against their definitions, each other, and the grids that engines have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intsr.kernels.draq import (
    Array,
    quantize_dynamic,
    quantize_static,
    quantize_static_channels,
    quantize_tokens_torch,
)
from intsr.kernels.quantizer import QuantParams, dequantize, quantize


@pytest.fixture
def x() -> Array:
    """(tokens, channels) with channels and tokens of different reach, one of each zero."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(33, 12)) * rng.uniform(0.1, 9, 12) * rng.uniform(0.5, 2, (33, 1))
    values[:, 3] = values[5] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_dynamic_form_is_its_definition(x: Array, bits: int) -> None:
    largest, got = 2 ** (bits - 1) - 1, quantize_dynamic(x, bits)
    s = [max(abs(float(v)) for v in column) or 1e-6 for column in x.T]
    for t, row in enumerate(x.astype(float)):
        d = max(abs(v / c) for v, c in zip(row, s, strict=True)) or 1e-6
        expected = [round(largest * v / (c * d)) * c * d / largest for v, c in zip(row, s, strict=True)]
        # A tie may fall the other way in float32; none is among these.
        np.testing.assert_allclose(got[t], expected, rtol=1e-5, atol=1e-7)


def test_forms_differ_by_what_is_known_before(x: Array) -> None:
    s = np.abs(x).max(axis=0)
    assert np.array_equal(quantize_static_channels(x, s, 4), quantize_dynamic(x, 4))
    assert not np.array_equal(quantize_static_channels(x, 2 * s + 1, 4), quantize_dynamic(x, 4))
    errors = [
        np.square(form - x).mean()
        for form in (quantize_dynamic(x, 4), quantize_static(x, np.maximum(s, 1e-6), 1.0, 4))
    ]
    assert errors[0] < errors[1]


def test_the_static_form_is_the_grid_of_a_qdq_pair(x: Array) -> None:
    s, d, bits = np.linspace(0.5, 2, 12).astype(np.float32), np.float32(3.5), 4
    # Codes from -7 to 7 of 16: D = d / 7, which fp16 holds.
    grid = QuantParams(0.5, 7, bits)
    codes = np.minimum(quantize(x / s, grid), 14)
    np.testing.assert_allclose(quantize_static(x, s, d, bits), dequantize(codes, grid) * s, rtol=1e-6)


@pytest.mark.parametrize("online", [True, False])
def test_torch_agrees_and_has_the_identity_as_gradient(x: Array, online: bool) -> None:
    clips = torch.from_numpy(np.stack([x, 3 * x[::-1]])).requires_grad_()
    got = quantize_tokens_torch(clips, 4, online)
    for clip, own in zip(clips.detach().numpy(), got.detach().numpy(), strict=True):
        ones = np.ones(12, np.float32)
        expected = quantize_dynamic(clip, 4) if online else quantize_static_channels(clip, ones, 4)
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
    got.sum().backward()
    assert clips.grad is not None and torch.equal(clips.grad, torch.ones_like(clips))
