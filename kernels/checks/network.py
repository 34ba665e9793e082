"""Checks of the candidates: GroupNorm+SiLU+LET+Quantize on NHWC, int8 GEMM and convolution.

Sizes are chosen to be awkward: channels that fill no tile, groups that cross 16-byte vectors, zero-points far outside
the codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from intsr.kernels.candidates import int8, launches
from intsr.kernels.candidates.group_norm import NormQuantize, group_norm_quantize
from intsr.kernels.checks.check import NEXT_CODE, Check, Random
from intsr.kernels.quantizer import QuantParams

Shape = tuple[int, int, int, int]


def norm_check(rng: Random, shape: Shape, groups: int, way: str, cluster: int = 1, zero_point: int = 16) -> Check:
    channels = shape[3]
    gamma, beta, shift, spread = (rng.normal(0, 0.2, channels).astype(np.float32) for _ in range(4))
    grid = QuantParams(0.015625, zero_point, 8)
    norm = NormQuantize(1 + gamma, beta, groups, 1e-5, True, np.exp(spread), shift, grid)
    return Check(
        f"GroupNorm+SiLU+LET+Q {way}{f' {cluster}' if cluster > 1 else ''}",
        f"{'x'.join(map(str, shape))} zero-point {zero_point}",
        # A mean well away from 0, as networks have them.
        (rng.normal(3, 2, shape).astype(np.float16),),
        partial(launches.plan_group_norm_quantize, norm=norm, way=way, cluster=cluster),
        partial(group_norm_quantize, norm=norm),
        NEXT_CODE,
    )


def _product(
    rng: Random, weight_shape: tuple[int, ...], zero_point: int, stride: int = 1, padding: Shape = (0, 0, 0, 0)
) -> int8.Int8Product:
    channels_out, channels_in = weight_shape[:2]
    let = np.exp(rng.normal(0, 0.2, channels_in)).astype(np.float32), rng.normal(0, 1, channels_in).astype(np.float32)
    return int8.int8_product(
        rng.integers(-127, 128, weight_shape, dtype=np.int8),
        rng.uniform(1e-4, 2e-4, channels_out).astype(np.float32),
        rng.normal(0, 1, channels_out).astype(np.float32),
        QuantParams(0.015625, zero_point, 8),
        let,
        stride,
        padding,
    )


def gemm_check(rng: Random, rows: int, inner: int, columns: int, tile: int = 64, zero_point: int = 128) -> Check:
    product = _product(rng, (columns, inner), zero_point)
    codes = rng.integers(-128, 128, (rows, inner), dtype=np.int8)
    residual = rng.normal(0, 1, (rows, columns)).astype(np.float16)
    return Check(
        f"int8 GEMM {tile}",
        f"{rows}x{inner}x{columns} zero-point {zero_point}",
        (codes, residual),
        partial(launches.plan_int8_gemm, product=product, tile=tile),
        partial(int8.gemm, product=product),
        operations=2 * rows * inner * columns,
    )


def conv_check(
    rng: Random,
    shape: Shape,
    channels_out: int,
    kernel: int = 3,
    stride: int = 1,
    padding: Shape = (1, 1, 1, 1),
    tile: int = 64,
    zero_point: int = 90,
) -> Check:
    product = _product(rng, (channels_out, shape[3], kernel, kernel), zero_point, stride, padding)
    codes = rng.integers(-128, 128, shape, dtype=np.int8)
    size = (shape[0], *product.out_size(shape[1], shape[2]), channels_out)
    residual = rng.normal(0, 1, size).astype(np.float16)
    return Check(
        f"int8 conv {kernel}x{kernel} / {stride} {tile}",
        f"{'x'.join(map(str, shape))} to {channels_out} zero-point {zero_point}",
        (codes, residual),
        partial(launches.plan_int8_conv, product=product, tile=tile),
        partial(int8.conv, product=product),
        operations=2 * residual.size * shape[3] * kernel * kernel,
    )


def small_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    """Every kernel, every branch, in sizes that an emulation can do."""
    yield norm_check(rng, (2, 9, 7, 32), 4, "block", zero_point=-90)
    yield norm_check(rng, (1, 8, 5, 320), 32, "block")
    if clusters:
        yield norm_check(rng, (1, 9, 5, 64), 32, "cluster", 2)
        yield norm_check(rng, (2, 3, 1, 40), 4, "cluster", 4)  # a block without any pixel
    yield norm_check(rng, (2, 9, 8, 320), 32, "two-pass", zero_point=240)
    yield norm_check(rng, (2, 5, 1, 96), 32, "two-pass")
    yield norm_check(rng, (1, 200, 1, 40), 4, "two-pass")  # on few multiprocessors the last chunk has no pixel
    for tile in (64, 128):
        yield gemm_check(rng, 100, 80, 72, tile)
        yield gemm_check(rng, 7, 272, 136, tile, zero_point=5000)
        yield conv_check(rng, (2, 9, 7, 80), 72, tile=tile, zero_point=-300)
        yield conv_check(rng, (1, 8, 11, 64), 40, stride=2, padding=(0, 0, 1, 1), tile=tile)
        yield conv_check(rng, (2, 3, 5, 16), 8, kernel=1, padding=(0, 0, 0, 0), tile=tile)


def full_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    """Sizes of the full model at a 64x64 latent, where times mean something."""
    # Block and cluster where every GPU's shared memory holds the slice.
    for side, channels, ways in (
        (64, 320, ("cluster", "two-pass")),
        (32, 640, ("block", "cluster", "two-pass")),
        (16, 1280, ("block", "two-pass")),
        (8, 2560, ("block", "two-pass")),
        (128, 512, ("cluster", "two-pass")),
        (512, 128, ("two-pass",)),
    ):
        for way in ways:
            if way != "cluster" or clusters:
                yield norm_check(rng, (1, side, side, channels), 32, way, 8 if way == "cluster" else 1)
    for tile in (64, 128):
        for rows, inner, columns in ((4096, 320, 2560), (4096, 1280, 320), (1024, 640, 5120), (8192, 8192, 8192)):
            yield gemm_check(rng, rows, inner, columns, tile)
        for side, channels_in, channels_out in ((64, 320, 320), (32, 1280, 640), (8, 2560, 1280), (256, 256, 256)):
            yield conv_check(rng, (1, side, side, channels_in), channels_out, tile=tile)
        yield conv_check(rng, (1, 512, 512, 128), 128, stride=2, padding=(0, 0, 1, 1), tile=tile)
