"""Checks of the picture kernels and of the colour fixes.

Sizes are chosen to be awkward: odd sides, rows that cross 16-byte vectors, tiles that leave the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.kernels.checks.check import EXACT, Check, Random, Tolerance
from intsr.kernels.launches import picture as launches
from intsr.kernels.launches.launch import Device, Plan
from intsr.kernels.reference import picture as reference
from intsr.kernels.reference.resize import enlarge

Size = tuple[int, int]
# Top, left, height and width of a tile.
Part = tuple[int, int, int, int]


def _pixels(rng: Random, height: int, width: int) -> Array:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _unit_planes(rng: Random, height: int, width: int) -> Array:
    """(3, H, W) float32, partly outside [0, 1]; half of them on ties of 8-bit levels."""
    return (rng.integers(-20, 530, (3, height, width)) / 510).astype(np.float32)


def resize_check(rng: Random, height: int, width: int, resize_filter: str, factor: int = 4) -> Check:
    how: dict[str, Any] = {"upscale_factor": factor, "resize_filter": resize_filter}
    name, shape = f"resize {resize_filter}", f"{height}x{width} x{factor}"
    inputs = (_pixels(rng, height, width),)
    return Check(name, shape, inputs, partial(launches.plan_enlarge, **how), partial(enlarge, **how))


def extract_check(rng: Random, picture: Size, part: Part, side: int) -> Check:
    top, left, height, width = part
    where: dict[str, Any] = {"top": top, "left": left, "height": height, "width": width, "side": side}
    return Check(
        "extract tile",
        f"{height}x{width} of {picture[0]}x{picture[1]} to {side}",
        (_pixels(rng, *picture),),
        partial(launches.plan_extract, **where),
        partial(reference.extract_tile, **where),
    )


def accumulate_check(rng: Random, picture: Size, part: Part, side: int) -> Check:
    top, left, height, width = part
    out, rows, columns = (rng.random(shape, dtype=np.float32) for shape in ((3, *picture), height, width))
    tile = rng.normal(0, 0.5, (1, 3, side, side)).astype(np.float16)
    return Check(
        "accumulate tile",
        f"{height}x{width} onto {picture[0]}x{picture[1]}",
        (out, tile, rows, columns),
        partial(launches.plan_accumulate, top=top, left=left),
        partial(reference.accumulate_tile, top=top, left=left),
    )


def pixels_check(rng: Random, height: int, width: int) -> Check:
    planes = _unit_planes(rng, height, width)
    return Check("pixels", f"{height}x{width}", (planes,), launches.plan_pixels, reference.pixels_from_unit)


def luma_check(rng: Random, height: int, width: int) -> Check:
    planes = _unit_planes(rng, height, width)
    return Check("luma", f"{height}x{width}", (planes,), launches.plan_luma, reference.luma_from_unit)


def clip_check(rng: Random, height: int, width: int) -> Check:
    """What is clipped; the extremes are a by-product, see `range_check`."""
    planes = rng.normal(0.5, 0.6, (3, height, width)).astype(np.float32)
    planes[1, -1, -1] = np.nan

    def plan(device: Device, target: Array) -> Plan:
        clipped = launches.plan_clip_and_range(device, target)
        return Plan(clipped.launches, clipped.keep[0], (clipped,))

    return Check("clip", f"{height}x{width}", (planes,), plan, lambda values: reference.clip_and_range(values)[0])


def range_check(rng: Random, height: int, width: int) -> Check:
    """The extremes of one block's work, which here is the whole picture."""
    planes = rng.normal(0.5, 0.6, (3, height, width)).astype(np.float32)

    def expected(values: Array) -> Array:
        return reference.clip_and_range(values)[1][:, None]

    size = f"{height}x{width}"
    return Check("range", size, (planes,), launches.plan_clip_and_range, expected)


def color_check(rng: Random, height: int, width: int, color_fix: str) -> Check:
    target, source = rng.random((3, height, width), dtype=np.float32) * np.float32(0.7), _pixels(rng, height, width)
    planner, function, tolerance = {
        "adain": (launches.plan_adain, reference.adain, Tolerance(2e-6)),
        "wavelet": (launches.plan_wavelet, reference.wavelet, EXACT),
    }[color_fix]
    return Check(color_fix, f"{height}x{width}", (target, source), planner, function, tolerance)


def small_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    """Every kernel, every branch, in sizes that an emulation can do."""
    for resize_filter in ("bicubic", "lanczos", "box"):
        yield resize_check(rng, 5, 19, resize_filter)
        yield resize_check(rng, 18, 1, resize_filter)
        yield resize_check(rng, 11, 7, resize_filter, 3)
    yield extract_check(rng, (40, 52), (3, 5, 30, 20), 64)
    yield extract_check(rng, (9, 6), (2, 1, 1, 5), 16)
    yield accumulate_check(rng, (40, 52), (2, 4, 30, 29), 32)
    yield accumulate_check(rng, (40, 51), (2, 3, 32, 31), 32)
    for height, width in ((9, 7), (24, 36)):
        yield pixels_check(rng, height, width)
        yield luma_check(rng, height, width)
    yield clip_check(rng, 37, 45)
    yield range_check(rng, 15, 17)
    for color_fix in ("adain", "wavelet"):
        yield color_check(rng, 1, 1, color_fix)
        yield color_check(rng, 37, 45, color_fix)
        yield color_check(rng, 40, 12, color_fix)


def full_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    """Sizes of the full model at a 64x64 latent and of a 4K picture."""
    yield resize_check(rng, 540, 960, "lanczos")
    yield extract_check(rng, (520, 520), (8, 8, 512, 512), 512)
    yield accumulate_check(rng, (520, 520), (8, 8, 512, 512), 512)
    yield pixels_check(rng, 2160, 3840)
    yield luma_check(rng, 2160, 3840)
    yield clip_check(rng, 2160, 3840)
    for color_fix in ("adain", "wavelet"):
        yield color_check(rng, 2160, 3840, color_fix)
        yield color_check(rng, 1001, 1003, color_fix)
