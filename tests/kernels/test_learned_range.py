"""The learned quantizer against NumPy's, against torch's own operator, and its gradients against the derivation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intsr.kernels.learned_range import quantize_in_range, quantize_symmetric
from intsr.kernels.quantizer import (
    QuantParams,
    dequantize,
    dequantize_weight,
    quantize,
    quantize_weight,
    quantize_weight_in_range,
)

ranges = st.tuples(st.floats(-9, 9), st.floats(0.01, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(ends=ranges, bits=st.integers(2, 8), seed=st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_forward_equals_the_numpy_quantizer(ends, bits, seed):
    x = np.random.default_rng(seed).normal(0, 6, 500).astype(np.float32)
    params = QuantParams.from_range(*(float(np.float32(end)) for end in ends), bits)
    y = quantize_in_range(torch.from_numpy(x), *(torch.tensor(end) for end in ends), bits)
    np.testing.assert_allclose(y.numpy(), dequantize(quantize(x, params), params), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_equal_torch_s_own_operator(bits):
    """torch learns scale and zero-point; the chain rule turns those gradients into the ends'. Many lie outside."""
    torch.manual_seed(bits)
    x = torch.randn(3, 5, 7, requires_grad=True)
    # A scale that fp16 holds: torch does not round it.
    scale_value, first = 2.0 ** (1 - bits), -(2 ** (bits - 1)) + 1
    steps = 2**bits - 1
    low = torch.tensor(scale_value * (first + 0.25), requires_grad=True)
    high = torch.tensor(float(low.detach()) + scale_value * steps, requires_grad=True)
    weights = torch.randn(3, 5, 7)
    (quantize_in_range(x, low, high, bits) * weights).sum().backward()
    ours = x.grad.clone(), float(low.grad), float(high.grad)

    x.grad = None
    scale, zero = torch.tensor([scale_value], requires_grad=True), torch.tensor([float(-first)], requires_grad=True)
    y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, 0, steps, 1.0)
    (y * weights).sum().backward()
    # zero = -R(low / D): d/dlow = -1 / D - low / D**2 / steps, d/dhigh = low / D**2 / steps
    of_scale, of_zero, ratio = float(scale.grad), float(zero.grad), float(low.detach()) / scale_value**2 / steps
    assert torch.equal(ours[0], x.grad)
    assert ours[1] == pytest.approx(-of_scale / steps + of_zero * (-1 / scale_value - ratio), rel=1e-4, abs=1e-4)
    assert ours[2] == pytest.approx(of_scale / steps + of_zero * ratio, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 5, 6])
def test_weights_on_asymmetric_grids_fit_int8_and_equal_training(bits):
    rng = np.random.default_rng(bits)
    weight = rng.normal(0, 1, (9, 4, 3, 3)).astype(np.float32)
    weight[1], weight[2] = np.abs(weight[1]), 0.0
    low, high = weight.min((1, 2, 3)) * 0.9, weight.max((1, 2, 3)) * 0.8
    codes, scale = quantize_weight_in_range(weight, low, high, bits)
    assert codes.dtype == np.int8 and np.abs(codes).max() <= 63
    assert all(np.ptp(row) <= 2**bits - 1 for row in codes.reshape(9, -1).astype(int))
    used = [0, 1, 3, 4, 5, 6, 7, 8]
    ends = [torch.from_numpy(v[used].astype(np.float32)).reshape(-1, 1, 1, 1) for v in (np.minimum(low, 0), high)]
    trained = quantize_in_range(torch.from_numpy(weight[used]), *ends, bits)
    np.testing.assert_allclose(dequantize_weight(codes, scale)[used], trained.numpy(), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 7])
def test_weights_of_eight_and_seven_bits_are_symmetric_and_equal_training(bits):
    weight = np.random.default_rng(0).normal(0, 1, (6, 5)).astype(np.float32)
    reach = np.abs(weight).max(1)
    codes, scale = quantize_weight_in_range(weight, weight.min(1), weight.max(1), bits)
    assert np.abs(codes).max() == 2 ** (bits - 1) - 1
    plain = quantize_weight(weight, bits)
    np.testing.assert_array_equal(codes, plain[0])
    np.testing.assert_array_equal(scale, plain[1])
    trained = quantize_symmetric(torch.from_numpy(weight), torch.from_numpy(reach).reshape(-1, 1), bits)
    np.testing.assert_allclose(trained.numpy(), dequantize_weight(codes, scale), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_in_full(dtype):
    """As autocast gives it: the same codes, the same gradients as of the same values in float32."""
    torch.manual_seed(0)
    values, weights = (torch.randn(4, 500) * 2).to(dtype), torch.randn(4, 500)
    found = []
    for x in (values.clone().requires_grad_(), values.float().requires_grad_()):
        ends = torch.tensor(-2.9, requires_grad=True), torch.tensor(3.1, requires_grad=True)
        y = quantize_in_range(x, *ends, 8)
        (y * weights).sum().backward()
        found.append((y.detach(), ends[0].grad, ends[1].grad, x.grad.to(dtype)))
    assert found[0][0].dtype == torch.float32
    assert all(torch.equal(got, expected) for got, expected in zip(*found, strict=True))
    # Of bfloat16's own 8 bits: no value would be on the grid.
    codes = found[0][0] / (found[0][0].unique().diff().min())
    torch.testing.assert_close(codes, codes.round(), atol=2e-2, rtol=0)
