"""Launches of the picture kernels: shapes and pointers in, plans out. Nothing runs here.

Every plan equals its function in `reference.resize` and `reference.picture`, to the last bit but for adain, whose
statistics are summed in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intsr.cuda.arrays import DeviceArray
from intsr.errors import UsageError
from intsr.kernels.launches.launch import DeviceMemory, Launch, Plan, require
from intsr.kernels.launches.parameters import (
    AccumulateParams,
    ColorParams,
    ExtractParams,
    PixelsParams,
    RangeParams,
    ResizeParams,
    WaveletParams,
)
from intsr.kernels.reference.picture import VARIANCE_FLOOR, WAVELET_LEVELS
from intsr.kernels.reference.resize import resize_weights

_THREADS = 256
_TILE_WIDTH, _TILE_HEIGHT = 64, 32


def plan_enlarge(device: DeviceMemory, pixels: Any, upscale_factor: int, resize_filter: str) -> Plan:
    """(H, W, 3) uint8 -> (H f, W f, 3) uint8."""
    source = require(pixels, "pixels", np.uint8, (None, None, 3))
    height, width, _ = source.shape
    out_height, out_width = height * upscale_factor, width * upscale_factor
    first_y, taps_y = resize_weights(height, upscale_factor, resize_filter)
    first_x, taps_x = resize_weights(width, upscale_factor, resize_filter)
    weights = [device.upload(array) for array in (first_x, taps_x, first_y, taps_y)]
    bottoms = np.minimum(np.arange(0, out_height, _TILE_HEIGHT) + _TILE_HEIGHT, out_height) - 1
    rows = int((first_y[bottoms] - first_y[::_TILE_HEIGHT]).max()) + taps_y.shape[1]
    out = device.empty((out_height, out_width, 3), np.uint8)
    params = ResizeParams(
        pixels=source,
        out=out,
        **dict(zip(("first_x", "taps_x", "first_y", "taps_y"), weights, strict=True)),
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        taps=taps_x.shape[1],
        rows=rows,
    )
    grid = (-(-out_width // _TILE_WIDTH), -(-out_height // _TILE_HEIGHT), 1)
    launch = Launch("resize_pixels", grid, _THREADS, params, rows * _TILE_WIDTH * 3)
    return Plan((launch,), out, (source, *weights))


def plan_extract(
    device: DeviceMemory,
    pixels: Any,
    *,
    top: int,
    left: int,
    height: int,
    width: int,
    side: int,
    out: DeviceArray | None = None,
) -> Plan:
    """A rectangle of (H, W, 3) uint8 -> (1, 3, side, side) float16 in [-1, 1]; side a multiple of 8.

    out: memory of that shape to fill, instead of new memory.
    """
    source = require(pixels, "pixels", np.uint8, (None, None, 3))
    if side % 8:
        raise UsageError("tile", f"{side} pixels", "a multiple of 8")
    if not (0 <= top <= source.shape[0] - height and 0 <= left <= source.shape[1] - width):
        raise UsageError("tile", f"{height}x{width} at ({top}, {left})", f"inside {source.shape[:2]}")
    shape = (1, 3, side, side)
    out = device.empty(shape, np.float16) if out is None else require(out, "model input", np.float16, shape)
    params = ExtractParams(
        pixels=source,
        out=out,
        picture_width=source.shape[1],
        top=top,
        left=left,
        height=height,
        width=width,
        side=side,
    )
    grid = (-(-side * side // (8 * _THREADS)), 1, 1)
    return Plan((Launch("extract_tile", grid, _THREADS, params),), out, (source,))


def plan_accumulate(
    device: DeviceMemory,
    out: Any,
    tile: Any,
    rows: DeviceArray,
    columns: DeviceArray,
    *,
    top: int,
    left: int,
) -> Plan:
    """Adds a tile (1, 3, side, side) float16, weighted, onto (3, H, W) float32 in place.

    rows, columns: (height,) and (width,) float32.
    """
    picture = require(out, "picture", np.float32, (3, None, None))
    source = require(tile, "tile", np.float16, (1, 3, None, None))
    _, picture_height, picture_width = picture.shape
    height, width, side = rows.shape[0], columns.shape[0], source.shape[3]
    if max(height, width) > side or top + height > picture_height or left + width > picture_width:
        raise UsageError("tile", f"{height}x{width} at ({top}, {left})", f"inside {picture.shape[1:]} and {side} px")
    params = AccumulateParams(
        tile=source,
        out=picture,
        rows=rows,
        columns=columns,
        picture_height=picture_height,
        picture_width=picture_width,
        top=top,
        left=left,
        height=height,
        width=width,
        side=side,
        vector=int(picture_width % 4 == 0 and left % 4 == 0 and side % 4 == 0),
    )
    grid = (-(-width // (4 * _THREADS)), height, 3)
    return Plan((Launch("accumulate_tile", grid, _THREADS, params),), picture, (source, rows, columns))


def plan_pixels(device: DeviceMemory, planes: Any) -> Plan:
    """(3, H, W) float32 in [0, 1] -> (H, W, 3) uint8, rounded half to even."""
    return _plan_levels(device, planes, "pixels_from_unit", (3,))


def plan_luma(device: DeviceMemory, planes: Any) -> Plan:
    """(3, H, W) float32 in [0, 1] -> (H, W) uint8, Rec. 601, rounded half to even."""
    return _plan_levels(device, planes, "luma_from_unit", ())


def _plan_levels(device: DeviceMemory, planes: Any, kernel: str, channels: tuple[int, ...]) -> Plan:
    source = require(planes, "planes", np.float32, (3, None, None))
    _, height, width = source.shape
    out = device.empty((height, width, *channels), np.uint8)
    params = PixelsParams(planes=source, out=out, count=height * width)
    grid = (-(-height * width // (4 * _THREADS)), 1, 1)
    return Plan((Launch(kernel, grid, _THREADS, params),), out, (source,))


def plan_clip_and_range(device: DeviceMemory, planes: Any) -> Plan:
    """Clips (3, H, W) float32 to [0, 1] in place -> (3, blocks, 2) float32: the least and the largest values before.

    The largest is infinite where a value was NaN or infinite.
    """
    source = require(planes, "planes", np.float32, (3, None, None))
    count = source.shape[1] * source.shape[2]
    blocks = min(-(-count // _THREADS), 2 * device.multiprocessors)
    extremes = device.empty((3, blocks, 2), np.float32)
    params = RangeParams(planes=source, extremes=extremes, count=count, blocks=blocks)
    launch = Launch("clip_and_range", (blocks, 3, 1), _THREADS, params, _THREADS // 32 * 8)
    return Plan((launch,), extremes, (source,))


def plan_adain(device: DeviceMemory, target: Any, source: Any) -> Plan:
    """Colours of (H, W, 3) uint8 given to (3, H, W) float32, in place."""
    planes = require(target, "target", np.float32, (3, None, None))
    _, height, width = planes.shape
    pixels = require(source, "source", np.uint8, (height, width, 3))
    quads = -(-height * width // (4 * _THREADS))
    blocks = min(quads, 2 * device.multiprocessors)
    partial, factors = device.empty((blocks, 6, 2), np.float64), device.empty((3, 3), np.float32)
    params = ColorParams(
        target=planes,
        source=pixels,
        partial=partial,
        factors=factors,
        count=height * width,
        blocks=blocks,
        variance_floor=VARIANCE_FLOOR,
    )
    launches = (
        Launch("adain_sums", (blocks, 1, 1), _THREADS, params, _THREADS // 32 * 12 * 8),
        Launch("adain_finish", (1, 1, 1), 96, params),
        Launch("adain_apply", (quads, 3, 1), _THREADS, params),
    )
    return Plan(launches, planes, (pixels, partial, factors))


def plan_wavelet(device: DeviceMemory, target: Any, source: Any) -> Plan:
    """High frequencies of (3, H, W) float32, low ones of (H, W, 3) uint8 -> (3, H, W) float32; the target is kept."""
    planes = require(target, "target", np.float32, (3, None, None))
    _, height, width = planes.shape
    pixels = require(source, "source", np.uint8, (height, width, 3))
    buffers = [device.empty(planes.shape, np.float32) for _ in range(2)]
    launches = []
    for level in range(WAVELET_LEVELS):
        values: dict[str, Any] = {"in": buffers[(level + 1) % 2] if level else None}
        params = WaveletParams(
            **values,
            target=planes,
            source=pixels,
            out=buffers[level % 2],
            height=height,
            width=width,
            dilation=2**level,
            last=int(level == WAVELET_LEVELS - 1),
        )
        launches.append(Launch("wavelet_level", (-(-width // 32), -(-height // 8), 3), _THREADS, params))
    return Plan(tuple(launches), buffers[(WAVELET_LEVELS - 1) % 2], (planes, pixels, *buffers))
