"""The kernels' references against the runtime's own functions and against torch: the device path gives the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intsr.kernels.candidates import int8
from intsr.kernels.candidates.group_norm import NormQuantize, group_norm_quantize
from intsr.kernels.quantizer import QuantParams, dequantize_weight, fake_quantize_torch, quantize_weight
from intsr.kernels.reference import picture as reference_picture
from intsr.kernels.reference import resize as reference_resize
from intsr.kernels.reference.group_norm import group_norm_plugin
from intsr.runtime import color_fix
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.tiles import enlarge as resize
from intsr.runtime.tiles import grid as tiling
from intsr.runtime.upscaler import Upscaler
from intsr.types import TensorInfo


def pixels_of(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    factor=st.integers(2, 4),
    resize_filter=st.sampled_from(["bicubic", "lanczos"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_resize_equals_pillow_to_the_last_bit(height, width, factor, resize_filter, seed):
    pixels = pixels_of(np.random.default_rng(seed), height, width)
    expected = resize.enlarge(pixels, factor, resize_filter)
    np.testing.assert_array_equal(reference_resize.enlarge(pixels, factor, resize_filter), expected)


def test_resize_equals_pillow_where_one_pass_is_much_the_longer():
    for shape in ((300, 20), (3, 200), (128, 192)):
        pixels = pixels_of(np.random.default_rng(1), *shape)
        expected = resize.enlarge(pixels, 4, "lanczos")
        np.testing.assert_array_equal(reference_resize.enlarge(pixels, 4, "lanczos"), expected)


@pytest.mark.parametrize(("height", "width"), [(30, 20), (1, 20), (64, 64)])
def test_a_tile_is_the_upscaler_s_rounded_to_fp16(height, width):
    pixels = pixels_of(np.random.default_rng(2), 80, 90)
    unit = resize.unit_part(pixels, 5, 6, height, width)
    expected = (tiling.pad_to_square(unit, 64)[None] * np.float32(2) - np.float32(1)).astype(np.float16)
    np.testing.assert_array_equal(reference_picture.extract_tile(pixels, 5, 6, height, width, 64), expected)


class _Noise:
    """A network that gives the next of its outputs whatever comes in; without any, its input."""

    def __init__(self, side, outputs=None):
        self.outputs = iter(outputs or ())
        self.input = self.output = TensorInfo("x", (1, 3, side, side), "float16")

    def run(self, x):
        return next(self.outputs, x)

    def close(self):
        pass


@pytest.mark.parametrize("name", ["none", "wavelet", "adain"])
def test_the_whole_device_path_equals_the_upscaler_s(name):
    """Enlarge, extract, run, blend, fix colours, round: each by its reference, against `Upscaler.upscale`."""
    rng = np.random.default_rng(3)
    pixels, factor, tile_px, overlap_px = pixels_of(rng, 21, 34), 4, 16, 5
    plan = tiling.plan_tiles(21, 34, tile_px, overlap_px)
    side = tile_px * factor
    tiles = [rng.normal(0, 0.6, (1, 3, side, side)).astype(np.float16) for _ in plan.tiles]
    networks = _Noise(side), _Noise(side), _Noise(side, tiles)
    expected = Upscaler(
        Backend(networks), tile_px, overlap_px, factor, resize_filter="lanczos", color_fix=name
    ).upscale(pixels)

    enlarged = reference_resize.enlarge(pixels, factor, "lanczos")
    rows = tiling.blend_weights(tuple(top * factor for top in plan.tops), side, 84)
    columns = tiling.blend_weights(tuple(left * factor for left in plan.lefts), side, 136)
    out = np.zeros((3, 84, 136), np.float32)
    for place, tile in zip(plan.tiles, tiles, strict=True):
        weights = rows[place.row], columns[place.column]
        out = reference_picture.accumulate_tile(out, tile, *weights, place.top * factor, place.left * factor)
    out = np.clip(out, 0, 1)
    if name != "none":
        out = getattr(reference_picture, name)(out, enlarged)
    got = reference_picture.pixels_from_unit(out)
    # adain's statistics are summed in another order: a value at a tie may take the next level.
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= (name == "adain") and (difference > 0).mean() < 1e-3


def test_pixels_round_ties_to_even_and_clip():
    planes = np.array([[[0.5, 1.5, 2.5, -9.0, 300.0]]] * 3, np.float32) / np.float32(255)
    assert reference_picture.pixels_from_unit(planes)[0, :, 0].tolist() == [0, 2, 2, 0, 255]


@pytest.mark.parametrize("shape", [(1, 1), (37, 45)])
@pytest.mark.parametrize(("name", "tolerance"), [("adain", 1e-6), ("wavelet", 0)])
def test_color_fixes_equal_the_runtime_s(shape, name, tolerance):
    rng = np.random.default_rng(4)
    target, source = rng.random((3, *shape), dtype=np.float32), pixels_of(rng, *shape)
    fix = color_fix.open_color_fix(name)
    (*bands,) = fix.push(target.copy(), resize.unit_channels(source))
    expected = np.concatenate([*bands, *fix.finish()], axis=1)
    got = getattr(reference_picture, name)(target, source)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("channels", "groups", "activation"), [(40, 4, True), (64, 32, False)])
def test_group_norm_equals_torch_and_the_quantizer(channels, groups, activation):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 7, 5).half() * 3 + 4
    gamma, beta, shift = (torch.randn(channels) * 0.3 for _ in range(3))
    let_scale, grid = torch.rand(channels) + 0.5, QuantParams(0.0234375, 40, 7)
    norm = NormQuantize(gamma.numpy(), beta.numpy(), groups, 1e-5, activation, let_scale.numpy(), shift.numpy(), grid)
    y = torch.nn.functional.group_norm(x.double(), groups, gamma.double(), beta.double(), 1e-5)
    y = torch.nn.functional.silu(y) if activation else y
    columns = (1, channels, 1, 1)
    expected = fake_quantize_torch((y - shift.reshape(columns)) / let_scale.reshape(columns), grid)
    codes = group_norm_quantize(x.permute(0, 2, 3, 1).numpy(), norm)
    got = (codes.astype(np.float64) + 128 - grid.zero_point) * grid.scale
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1).numpy(), atol=1e-9)
    assert len(np.unique(codes)) > 20
    np.testing.assert_allclose(norm.multiplier * let_scale.numpy() * grid.scale, 1, rtol=1e-6)


@pytest.mark.parametrize("activation", [True, False])
def test_the_plugins_operation_equals_torch(activation):
    rng = np.random.default_rng(3)
    x = rng.normal(2, 3, (2, 24, 4, 6))
    gamma, beta, shift, multiplier = (rng.normal(1, 0.3, 24) for _ in range(4))
    tensors = (torch.from_numpy(array) for array in (x, gamma, beta))
    value, weight, bias = tensors
    y = torch.nn.functional.group_norm(value, 4, weight, bias, 1e-5)
    y = torch.nn.functional.silu(y) if activation else y
    scaled = (y.numpy() - shift.reshape(-1, 1, 1)) * multiplier.reshape(-1, 1, 1)
    vectors = (gamma, beta, shift, multiplier)
    np.testing.assert_allclose(group_norm_plugin(x, vectors, 4, 1e-5, activation, None), scaled, atol=1e-9)
    codes = group_norm_plugin(x, vectors, 4, 1e-5, activation, (-2, 3))
    np.testing.assert_array_equal(codes, np.clip(np.rint(scaled), -2, 3))
    assert codes.dtype == np.int8 and len(np.unique(codes)) == 6


@pytest.mark.parametrize(
    ("zero_point", "stride", "padding"), [(117, 1, (1, 1, 1, 1)), (300, 2, (0, 0, 1, 1)), (-60, 1, (0, 0, 0, 0))]
)
def test_int8_conv_equals_torch_on_dequantized_values(zero_point, stride, padding):
    rng = np.random.default_rng(5)
    grid, let = QuantParams(0.03125, zero_point, 8), (rng.uniform(0.5, 2, 16), rng.normal(0, 1, 16))
    let_scale, let_shift = (values.astype(np.float32) for values in let)
    weight_codes, weight_scale = quantize_weight(rng.normal(0, 0.1, (8, 16, 3, 3)), 8)
    bias, x = rng.normal(0, 1, 8).astype(np.float32), rng.normal(0, 2, (2, 16, 9, 6))
    # Padded before LET and the quantizer, then a convolution without padding.
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    columns = (1, 16, 1, 1)
    moved = torch.from_numpy((padded - let_shift.reshape(columns)) / let_scale.reshape(columns)).float()
    values = fake_quantize_torch(moved, grid).double()
    weight = torch.from_numpy(dequantize_weight(weight_codes, weight_scale)).double()
    expected = torch.nn.functional.conv2d(values, weight, torch.from_numpy(bias).double(), stride)
    residual = rng.normal(0, 1, tuple(expected.permute(0, 2, 3, 1).shape)).astype(np.float16)
    product = int8.int8_product(weight_codes, weight_scale, bias, grid, (let_scale, let_shift), stride, padding)
    inside = values[:, :, top : top + 9, left : left + 6].permute(0, 2, 3, 1).numpy()
    codes = (np.rint(inside / grid.scale) + zero_point - 128).astype(np.int8)
    got = int8.conv(codes, residual, product)
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1).numpy() + residual, rtol=2e-3, atol=4e-3)


def test_int8_gemm_equals_a_1x1_convolution():
    rng = np.random.default_rng(6)
    weights = rng.integers(-127, 128, (24, 32), dtype=np.int8)
    scale, bias = rng.random(24).astype(np.float32) * 1e-3, rng.normal(0, 1, 24).astype(np.float32)
    product = int8.int8_product(weights, scale, bias, QuantParams(0.5, 128, 8))
    codes = rng.integers(-128, 128, (15, 32), dtype=np.int8)
    got = int8.gemm(codes, None, product)
    exact = codes.astype(np.int64) @ weights.astype(np.int64).T * (scale * 0.5) + bias
    np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-3)
    conv = int8.conv(codes.reshape(1, 3, 5, 32), None, product)
    np.testing.assert_array_equal(conv.reshape(15, 24), got)
