from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intsr.kernels.quantizer import (
    MAX_SCALE,
    MIN_SCALE,
    QuantParams,
    dequantize,
    dequantize_weight,
    fake_quantize_torch,
    quantize,
    quantize_weight,
    rescale,
    round_scale,
)

ENDS = st.floats(-100, 100, width=32)
BITS = st.integers(2, 8)


@given(ENDS, ENDS, BITS)
def test_values_inside_the_range_move_by_at_most_half_a_step(a: float, b: float, bits: int) -> None:
    x_min, x_max = min(a, b, 0.0), max(a, b, 0.0)
    params = QuantParams.from_range(x_min, x_max, bits)
    x = np.linspace(max(x_min, params.real_min), min(x_max, params.real_max), 101, dtype=np.float32)
    error = np.abs(dequantize(quantize(x, params), params) - x)
    assert error.max() <= params.scale * (0.5 + 1e-4)


@given(ENDS, ENDS, BITS)
def test_numpy_and_torch_agree_to_the_last_bit(a: float, b: float, bits: int) -> None:
    params = QuantParams.from_range(min(a, b), max(a, b), bits)
    x = np.random.default_rng(1).normal(0, 60, 500).astype(np.float32)
    expected = dequantize(quantize(x, params), params)
    got = fake_quantize_torch(torch.from_numpy(x), params).numpy()
    np.testing.assert_array_equal(got, expected)


def test_a_hand_computed_grid() -> None:
    # D = 3 / 3 = 1, z = R(-1 / 1) = -1: codes 0..3 stand for -1, 0, 1, 2.
    params = QuantParams.from_range(-1.0, 2.0, 2)
    assert (params.scale, params.zero_point) == (1.0, 1)
    x = np.array([-9.0, -0.6, 0.5, 1.5, 1.6, 9.0], np.float32)
    # 0.5 and 1.5 are ties and go to the even integer: 0 and 2.
    assert quantize(x, params).tolist() == [0, 0, 1, 3, 3, 3]
    assert dequantize(quantize(x, params), params).tolist() == [-1, -1, 0, 2, 2, 2]


def test_an_all_zero_tensor_gives_no_nan() -> None:
    params = QuantParams.from_range(0.0, 0.0, 8)
    assert params.scale == MIN_SCALE
    assert dequantize(quantize(np.zeros(3, np.float32), params), params).tolist() == [0, 0, 0]
    codes, scale = quantize_weight(np.zeros((2, 3), np.float32), 8)
    assert not codes.any() and np.isfinite(scale).all() and (scale > 0).all()


@pytest.mark.parametrize("ends", [(float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0)])
def test_a_broken_range_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="range"):
        QuantParams.from_range(*ends, 8)


@given(st.floats(1e-8, 1e4), st.floats(-100, 100))
def test_scales_are_exact_in_fp16(scale: float, factor: float) -> None:
    exact = float(np.float32(scale)) * abs(factor)
    for rounded, wanted in ((round_scale(scale), scale), (rescale(np.float32(scale), factor), exact)):
        assert np.float16(rounded) == rounded and MIN_SCALE <= rounded <= MAX_SCALE
        if MIN_SCALE <= wanted <= MAX_SCALE:
            assert abs(float(rounded) - wanted) <= wanted * 2**-11


@given(BITS)
def test_weights_are_symmetric_per_channel(bits: int) -> None:
    weight = np.random.default_rng(bits).normal(size=(5, 4, 3, 3)).astype(np.float32) * np.logspace(-3, 1, 5)[
        :, None, None, None
    ].astype(np.float32)
    codes, scale = quantize_weight(weight, bits)
    qmax = 2 ** (bits - 1) - 1
    assert np.abs(codes).max() <= qmax and scale.shape == (5,)
    half_step = 0.5 * scale[:, None, None, None]
    clipped = np.abs(weight) > qmax * scale[:, None, None, None]
    error = np.abs(dequantize_weight(codes, scale) - weight)
    assert (error[~clipped] <= np.broadcast_to(half_step, weight.shape)[~clipped] * 1.001).all()
    negated, _ = quantize_weight(-weight, bits)
    np.testing.assert_array_equal(negated, -codes)
