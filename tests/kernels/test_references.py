"""The kernels' references against the runtime's own functions and against torch: the device path gives the same."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intsr.kernels.launches.group_norm_plugin import PluginNorm
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
    resize_filter=st.sampled_from(["bicubic", "lanczos", "box"]),
    seed=st.integers(0, 99),
)
@example(300, 20, 4, "lanczos", 1)  # one pass much the longer
@example(3, 200, 4, "lanczos", 1)
@settings(max_examples=25, deadline=None)
def test_resize_equals_pillow_to_the_last_bit(height, width, factor, resize_filter, seed):
    pixels = pixels_of(np.random.default_rng(seed), height, width)
    expected = resize.enlarge(pixels, factor, resize_filter)
    np.testing.assert_array_equal(reference_resize.enlarge(pixels, factor, resize_filter), expected)


@pytest.mark.parametrize(("height", "width"), [(30, 20), (1, 20), (64, 64)])
def test_a_tile_is_the_upscaler_s_rounded_to_fp16(height, width):
    pixels = pixels_of(np.random.default_rng(2), 80, 90)
    unit = resize.unit_part(pixels, 5, 6, height, width)
    expected = (tiling.pad_to_square(unit, 64)[None] * np.float32(2) - np.float32(1)).astype(np.float16)
    got = reference_picture.extract_tile(pixels, top=5, left=6, height=height, width=width, side=64)
    np.testing.assert_array_equal(got, expected)


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
        weights, top, left = (rows[place.row], columns[place.column]), place.top * factor, place.left * factor
        out = reference_picture.accumulate_tile(out, tile, *weights, top=top, left=left)
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


@pytest.mark.parametrize("activation", [True, False])
def test_the_plugins_operation_equals_torch(activation):
    rng = np.random.default_rng(3)
    x = rng.normal(2, 3, (2, 24, 4, 6))
    gamma, beta, shift, multiplier = vectors = tuple(rng.normal(1, 0.3, 24) for _ in range(4))
    value, weight, bias = map(torch.from_numpy, (x, gamma, beta))
    y = torch.nn.functional.group_norm(value, 4, weight, bias, 1e-5)
    y = torch.nn.functional.silu(y) if activation else y
    scaled = (y.numpy() - shift.reshape(-1, 1, 1)) * multiplier.reshape(-1, 1, 1)
    norm = PluginNorm(4, 1e-5, activation, -2, 3)
    np.testing.assert_allclose(group_norm_plugin(x, vectors, norm, codes=False), scaled, atol=1e-9)
    codes = group_norm_plugin(x, vectors, norm, codes=True)
    np.testing.assert_array_equal(codes, np.clip(np.rint(scaled), -2, 3))
    assert codes.dtype == np.int8 and len(np.unique(codes)) == 6
