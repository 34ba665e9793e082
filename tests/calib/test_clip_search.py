"""Searched ranges lose no more than the values' own ends, and less where there are outliers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intsr.calib.learn.clip_search import (
    lsq_activation_range,
    lsq_weight_range,
    sample_values,
    search_activation_range,
    search_weight_range,
)
from intsr.kernels.learned_range import quantize_in_range


def error(values: torch.Tensor, low: float, high: float, bits: int) -> float:
    y = quantize_in_range(values, torch.tensor(low), torch.tensor(high), bits)
    return float((y - values).square().mean())


@given(bits=st.integers(2, 8), seed=st.integers(0, 999), symmetric=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_searched_range_is_no_worse_than_min_and_max(bits, seed, symmetric):
    values = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) ** 3
    low, high = search_activation_range(values, bits, symmetric)
    ends = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        ends = -max(-ends[0], ends[1]), max(-ends[0], ends[1])
    assert error(values, low, high, bits) <= error(values, *ends, bits) + 1e-12
    assert low <= 0 <= high and (not symmetric or low == -high)


def test_an_outlier_is_clipped_at_few_bits():
    values = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(0)), torch.tensor([20.0])])
    _, high = search_activation_range(values, 4, False)
    assert high < 12


def test_all_zero_values_keep_a_range_of_no_width():
    assert search_activation_range(torch.zeros(50), 8, False) == (0.0, 0.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_importance_decides_which_weights_count(bits):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * 0.1
    weight[:, 0] = 1.0  # a channel that is hardly seen need not be represented
    importance = torch.ones(8)
    importance[0] = 1e-6
    _, high = search_weight_range(weight, bits, importance)
    _, plain = search_weight_range(weight, bits)
    assert (high <= 0.7 * plain).all()


def test_weights_at_eight_bits_are_symmetric_and_rows_of_zeros_are_allowed():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    weight[1] = 0
    low, high = search_weight_range(weight, 8)
    assert torch.equal(low, -high) and float(high[1]) == 0


def test_lsq_starts_at_its_rule():
    values = torch.tensor([1.0, -1.0, 2.0, -2.0])
    low, high = lsq_activation_range(values, 8)
    assert high / 127 == pytest.approx(2 * 1.5 / 127**0.5, rel=1e-3) and low / high == pytest.approx(-128 / 127)
    low_rows, high_rows = lsq_weight_range(torch.ones(2, 5), 4)
    torch.testing.assert_close(high_rows, torch.full((2,), 2 / 7**0.5 * 7))
    assert torch.equal(low_rows, -high_rows)


def test_samples_hold_the_ends():
    x = torch.randn(40, 5000, generator=torch.Generator().manual_seed(3))
    sample = sample_values(x, torch.Generator().manual_seed(0))
    assert len(sample) < x.numel() and float(sample.min()) == float(x.min()) and float(sample.max()) == float(x.max())
