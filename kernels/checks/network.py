"""Every kernel with inputs, its reference and the work it does: what `selfcheck` runs.

Sizes are chosen to be awkward: odd sides, channels that fill no tile, groups that cross 16-byte vectors, zero-points
far outside the codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intsr.arrays import Array
from intsr.kernels.checks import EXACT, NEXT_CODE, Check, Random, Tolerance
from intsr.kernels.checks.group_norm_plugin import full_plugin_checks, small_plugin_checks
from intsr.kernels.launches import network as plan_network
from intsr.kernels.launches import picture as plan_picture
from intsr.kernels.launches.launch import Device, Plan
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.reference import int8 as reference_int8
from intsr.kernels.reference import picture as reference_picture
from intsr.kernels.reference import resize as reference_resize
from intsr.kernels.reference.group_norm import NormQuantize, group_norm_quantize


def _pixels(rng: Random, height: int, width: int) -> Array:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def resize_check(rng: Random, height: int, width: int, resize_filter: str, factor: int = 4) -> Check:
    pixels = _pixels(rng, height, width)
    return Check(
        f"resize {resize_filter}",
        f"{height}x{width} x{factor}",
        lambda device: plan_picture.plan_enlarge(device, device.upload(pixels), factor, resize_filter),
        lambda: reference_resize.enlarge(pixels, factor, resize_filter),
        EXACT,
        pixels.size * (1 + factor**2),
    )


def model_input_check(rng: Random, height: int, width: int) -> Check:
    """The second output of the resize kernel."""
    pixels = _pixels(rng, height, width)

    def plan(device: Device) -> Plan:
        target = device.empty((3, 4 * height, 4 * width), np.float16)
        made = plan_picture.plan_enlarge(device, device.upload(pixels), 4, "lanczos", target)
        return Plan(made.launches, target, (made,))

    def expected() -> Array:
        return reference_resize.model_input_from_pixels(reference_resize.enlarge(pixels, 4, "lanczos"))

    return Check("resize to fp16", f"{height}x{width} x4", plan, expected, EXACT, pixels.size * (1 + 16 * 3))


def extract_check(rng: Random, picture: tuple[int, int], part: tuple[int, int, int, int], side: int) -> Check:
    pixels = _pixels(rng, *picture)
    return Check(
        "extract tile",
        f"{part[2]}x{part[3]} of {picture[0]}x{picture[1]} to {side}",
        lambda device: plan_picture.plan_extract(device, device.upload(pixels), *part, side),
        lambda: reference_picture.extract_tile(pixels, *part, side),
        EXACT,
        3 * part[2] * part[3] + 6 * side * side,
    )


def accumulate_check(rng: Random, picture: tuple[int, int], part: tuple[int, int, int, int], side: int) -> Check:
    top, left, height, width = part
    out, rows, columns = (rng.random(shape, dtype=np.float32) for shape in ((3, *picture), height, width))
    tile = rng.normal(0, 0.5, (1, 3, side, side)).astype(np.float16)
    return Check(
        "accumulate tile",
        f"{height}x{width} onto {picture[0]}x{picture[1]}",
        lambda d: plan_picture.plan_accumulate(d, d.upload(out), d.upload(tile), rows, columns, top, left),
        lambda: reference_picture.accumulate_tile(out, tile, rows, columns, top, left),
        EXACT,
        3 * height * width * (2 + 8),
    )


def pixels_check(rng: Random, height: int, width: int, half: bool) -> Check:
    if half:
        planes = rng.normal(0, 0.8, (1, 3, height, width)).astype(np.float16)
    else:
        # Half of them on ties.
        planes = (rng.integers(-20, 530, (3, height, width)) / 510).astype(np.float32)
    function = reference_picture.pixels_from_output if half else reference_picture.pixels_from_unit
    return Check(
        f"pixels from {planes.dtype}",
        f"{height}x{width}",
        lambda device: plan_picture.plan_pixels(device, device.upload(planes)),
        lambda: function(planes),
        EXACT,
        planes.nbytes + 3 * height * width,
    )


def luma_check(rng: Random, height: int, width: int) -> Check:
    planes = (rng.integers(-20, 530, (3, height, width)) / 510).astype(np.float32)
    return Check(
        "luma",
        f"{height}x{width}",
        lambda device: plan_picture.plan_luma(device, device.upload(planes)),
        lambda: reference_picture.luma_from_unit(planes),
        EXACT,
        planes.nbytes + height * width,
    )


def clip_check(rng: Random, height: int, width: int) -> Check:
    """What is clipped; the extremes are a by-product, see `range_check`."""
    planes = rng.normal(0.5, 0.6, (3, height, width)).astype(np.float32)
    planes[1, -1, -1] = np.nan

    def plan(device: Device) -> Plan:
        target = device.upload(planes)
        made = plan_picture.plan_clip_and_range(device, target)
        return Plan(made.launches, target, (made,))

    expected = reference_picture.clip_and_range(planes)[0]
    return Check("clip", f"{height}x{width}", plan, lambda: expected, EXACT, 2 * planes.nbytes)


def range_check(rng: Random, height: int, width: int) -> Check:
    """The extremes of one block's work, which here is the whole picture."""
    planes = rng.normal(0.5, 0.6, (3, height, width)).astype(np.float32)
    return Check(
        "range",
        f"{height}x{width}",
        lambda device: plan_picture.plan_clip_and_range(device, device.upload(planes)),
        lambda: reference_picture.clip_and_range(planes)[1][:, None],
        EXACT,
        2 * planes.nbytes,
    )


def color_check(rng: Random, height: int, width: int, color_fix: str) -> Check:
    target, source = rng.random((3, height, width), dtype=np.float32) * np.float32(0.7), _pixels(rng, height, width)
    planner, function, moved, tolerance = {
        "adain": (plan_picture.plan_adain, reference_picture.adain, 3 * (4 + 1 + 8), Tolerance(2e-6)),
        "wavelet": (plan_picture.plan_wavelet, reference_picture.wavelet, 3 * (4 + 1 + 5 * 4 + 4 * 4 + 4), EXACT),
    }[color_fix]
    return Check(
        color_fix,
        f"{height}x{width}",
        lambda device: planner(device, device.upload(target), device.upload(source)),
        lambda: function(target, source),
        tolerance,
        moved * height * width,
    )


def norm_check(
    rng: Random, shape: tuple[int, int, int, int], groups: int, way: str = "", cluster: int = 0, zero_point: int = 16
) -> Check:
    channels = shape[3]
    gamma, beta, shift, spread = (rng.normal(0, 0.2, channels).astype(np.float32) for _ in range(4))
    grid = QuantParams(0.015625, zero_point, 8)
    norm = NormQuantize(1 + gamma, beta, groups, 1e-5, True, np.exp(spread), shift, grid)
    # A mean well away from 0, as networks have them.
    x = rng.normal(3, 2, shape).astype(np.float16)
    name = f"GroupNorm+SiLU+LET+Q {way or 'chosen'}{f' {cluster}' if cluster > 1 else ''}"
    return Check(
        name,
        f"{'x'.join(map(str, shape))} zero-point {zero_point}",
        lambda device: plan_network.plan_group_norm_quantize(device, device.upload(x), norm, way, cluster),
        lambda: group_norm_quantize(x, norm),
        NEXT_CODE,
        x.size * 3,
    )


def _product(
    rng: Random, weight_shape: tuple[int, ...], zero_point: int, stride: int = 1, padding: tuple[int, ...] = (0,) * 4
) -> reference_int8.Int8Product:
    channels_out, channels_in = weight_shape[:2]
    let = np.exp(rng.normal(0, 0.2, channels_in)).astype(np.float32), rng.normal(0, 1, channels_in).astype(np.float32)
    return reference_int8.int8_product(
        rng.integers(-127, 128, weight_shape, dtype=np.int8),
        rng.uniform(1e-4, 2e-4, channels_out).astype(np.float32),
        rng.normal(0, 1, channels_out).astype(np.float32),
        QuantParams(0.015625, zero_point, 8),
        let,
        stride,
        (padding[0], padding[1], padding[2], padding[3]),
    )


def gemm_check(rng: Random, rows: int, inner: int, columns: int, tile: int = 0, zero_point: int = 128) -> Check:
    product = _product(rng, (columns, inner), zero_point)
    codes = rng.integers(-128, 128, (rows, inner), dtype=np.int8)
    residual = rng.normal(0, 1, (rows, columns)).astype(np.float16)
    return Check(
        f"int8 GEMM {tile or 'chosen'}",
        f"{rows}x{inner}x{columns} zero-point {zero_point}",
        lambda d: plan_network.plan_int8_gemm(d, d.upload(codes), product, d.upload(residual), tile),
        lambda: reference_int8.gemm(codes, product, residual),
        EXACT,
        codes.size + product.weights.size + 4 * residual.size,
        2 * rows * inner * columns,
    )


def conv_check(
    rng: Random,
    shape: tuple[int, int, int, int],
    channels_out: int,
    kernel: int = 3,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    tile: int = 0,
    zero_point: int = 90,
) -> Check:
    product = _product(rng, (channels_out, shape[3], kernel, kernel), zero_point, stride, padding)
    codes = rng.integers(-128, 128, shape, dtype=np.int8)
    size = (shape[0], *product.out_size(shape[1], shape[2]), channels_out)
    residual = rng.normal(0, 1, size).astype(np.float16)
    return Check(
        f"int8 conv {kernel}x{kernel} / {stride} {tile or 'chosen'}",
        f"{'x'.join(map(str, shape))} to {channels_out} zero-point {zero_point}",
        lambda d: plan_network.plan_int8_conv(d, d.upload(codes), product, d.upload(residual), tile),
        lambda: reference_int8.conv(codes, product, residual),
        EXACT,
        codes.size + product.weights.size + 4 * residual.size,
        2 * residual.size * shape[3] * kernel * kernel,
    )


def small_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    """Every kernel, every branch, in sizes that an emulation can do."""
    for resize_filter in ("bicubic", "lanczos"):
        yield resize_check(rng, 5, 19, resize_filter)
        yield resize_check(rng, 18, 1, resize_filter)
        yield resize_check(rng, 11, 7, resize_filter, 3)
    yield model_input_check(rng, 9, 7)
    yield extract_check(rng, (40, 52), (3, 5, 30, 20), 64)
    yield extract_check(rng, (9, 6), (2, 1, 1, 5), 16)
    yield accumulate_check(rng, (40, 52), (2, 4, 30, 29), 32)
    yield accumulate_check(rng, (40, 51), (2, 3, 32, 31), 32)
    for half in (True, False):
        yield pixels_check(rng, 9, 7, half)
        yield pixels_check(rng, 24, 36, half)
    yield luma_check(rng, 9, 7)
    yield luma_check(rng, 24, 36)
    yield clip_check(rng, 37, 45)
    yield range_check(rng, 15, 17)
    for color_fix in ("adain", "wavelet"):
        yield color_check(rng, 1, 1, color_fix)
        yield color_check(rng, 37, 45, color_fix)
        yield color_check(rng, 40, 12, color_fix)
    yield norm_check(rng, (2, 9, 7, 32), 4, "block", zero_point=-90)
    yield norm_check(rng, (1, 8, 5, 320), 32, "block")
    if clusters:
        yield norm_check(rng, (1, 9, 5, 64), 32, "cluster", 2)
        yield norm_check(rng, (2, 3, 1, 40), 4, "cluster", 4)  # a block without any pixel
    yield norm_check(rng, (2, 9, 8, 320), 32, "two-pass", zero_point=240)
    yield norm_check(rng, (2, 5, 1, 96), 32, "two-pass")
    yield norm_check(rng, (1, 200, 1, 40), 4, "two-pass")  # on few multiprocessors the last chunk has no pixel
    yield from small_plugin_checks(rng, clusters)
    for tile in (64, 128):
        yield gemm_check(rng, 100, 80, 72, tile)
        yield gemm_check(rng, 7, 272, 136, tile, zero_point=5000)
        yield conv_check(rng, (2, 9, 7, 80), 72, tile=tile, zero_point=-300)
        yield conv_check(rng, (1, 8, 11, 64), 40, stride=2, padding=(0, 0, 1, 1), tile=tile)
        yield conv_check(rng, (2, 3, 5, 16), 8, kernel=1, padding=(0, 0, 0, 0), tile=tile)


def full_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    """The small ones, then sizes of the full model at a 64x64 latent, where times mean something."""
    yield from small_checks(rng, clusters)
    yield resize_check(rng, 540, 960, "lanczos")
    yield model_input_check(rng, 128, 128)
    yield extract_check(rng, (2160, 3840), (512, 1024, 512, 512), 512)
    yield accumulate_check(rng, (2160, 3840), (512, 1024, 512, 512), 512)
    yield pixels_check(rng, 2160, 3840, False)
    yield pixels_check(rng, 512, 512, True)
    yield luma_check(rng, 2160, 3840)
    yield clip_check(rng, 2160, 3840)
    for color_fix in ("adain", "wavelet"):
        yield color_check(rng, 2160, 3840, color_fix)
        yield color_check(rng, 1001, 1003, color_fix)
    for side, channels in ((64, 320), (32, 640), (16, 1280), (8, 2560), (128, 512), (512, 128)):
        yield norm_check(rng, (1, side, side, channels), 32)
    for way in plan_network.WAYS:
        if way == "block" or (way == "cluster" and not clusters):
            continue
        yield norm_check(rng, (1, 64, 64, 320), 32, way, 8)
    yield from full_plugin_checks(rng, clusters)
    for rows, inner, columns in ((4096, 320, 2560), (4096, 1280, 320), (1024, 640, 5120), (8192, 8192, 8192)):
        yield gemm_check(rng, rows, inner, columns)
    for side, channels_in, channels_out in ((64, 320, 320), (32, 1280, 640), (8, 2560, 1280), (256, 256, 256)):
        yield conv_check(rng, (1, side, side, channels_in), channels_out)
    yield conv_check(rng, (1, 512, 512, 128), 128, stride=2, padding=(0, 0, 1, 1))
