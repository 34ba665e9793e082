"""What is launched for a picture of a size, and what memory it takes: made once, run for each picture of the size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray
from intsr.kernels.launches import picture as plan_picture
from intsr.kernels.launches.launch import Plan
from intsr.runtime.backends.tensorrt.picture_device import KernelDevice
from intsr.runtime.tiles.blend import BAND_BYTES, LEAST_BAND_ROWS
from intsr.runtime.tiles.grid import TilePlan, blend_weights
from intsr.types import TensorInfo

CHANNELS = 3
# Of the canvas and of each buffer of the wavelet fix.
_FLOAT_BYTES = 4 * CHANNELS
_WAVELET_BUFFERS = 2
# Sums of the adain fix and extremes: 96 and 24 bytes a block, two blocks a multiprocessor.
_STATISTICS_BYTES = 1 << 16
# Kernels have 65535 blocks of 8 rows.
_MOST_ROWS = 65535 * 8


@dataclass(frozen=True, slots=True)
class PictureShape:
    """All that a picture's launches depend on. grey: one channel in and out."""

    tiles: TilePlan
    upscale_factor: int
    resize_filter: str
    color_fix: str
    grey: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output, pixels."""
        return self.tiles.height_px * self.upscale_factor, self.tiles.width_px * self.upscale_factor

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.size if self.grey else (*self.size, CHANNELS)

    @property
    def strip_rows(self) -> int:
        """How many rows of the output come down at once: in floats they would be a band of the host's."""
        height, width = self.size
        return min(max(BAND_BYTES // (_FLOAT_BYTES * width), LEAST_BAND_ROWS), height)

    def fits_kernels(self) -> bool:
        return self.size[0] <= _MOST_ROWS

    def device_bytes(self) -> int:
        """Return what its buffers take, beside the engine's own; rather more than less."""
        pixels, enlarged = self.tiles.height_px * self.tiles.width_px, math.prod(self.size)
        # First pixel and up to six weights for each row and column, twice; blend weights of every tile of an axis.
        tables = 4 * 16 * sum(self.size)
        side = self.tiles.tile_px * self.upscale_factor
        blend = 4 * side * (len(self.tiles.tops) + len(self.tiles.lefts))
        floats = 1 + (_WAVELET_BUFFERS if self.color_fix == "wavelet" else 0)
        picture = enlarged * (CHANNELS + floats * _FLOAT_BYTES + (1 if self.grey else CHANNELS))
        return pixels * CHANNELS + tables + blend + picture + _STATISTICS_BYTES


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """Launches and buffers of a picture, in the order of use."""

    shape: PictureShape
    # (H, W, 3) uint8, to be uploaded.
    pixels: DeviceArray
    enlarge: Plan
    # (3, H f, W f) float32, to be cleared.
    canvas: DeviceArray
    # By tile, to the first network's input and from the last one's output.
    extract: tuple[Plan, ...]
    accumulate: tuple[Plan, ...]
    # See `plan_clip_and_range`.
    check: Plan
    color_fix: Plan | None
    # (H f, W f, 3) or (H f, W f) uint8, and page-locked memory for some rows of that.
    output: Plan
    strip: Array


Ends: TypeAlias = tuple[tuple[TensorInfo, int], tuple[TensorInfo, int]]


def plan_whole_picture(device: KernelDevice, shape: PictureShape, ends: Ends) -> PicturePlan:
    """Take the memory and plan the launches.

    ends: the first network's input, (N, 3, T f, T f) or of the pixels themselves (N, 3, T, T), and the last one's
    output, (N, 3, T f, T f), float16, each with its address.
    Raises OutOfMemoryError, and whatever was taken then waits for `device.free`.
    """
    size = shape.size
    pixels = device.empty((shape.tiles.height_px, shape.tiles.width_px, CHANNELS), np.uint8)
    enlarge = plan_picture.plan_enlarge(device, pixels, shape.upscale_factor, shape.resize_filter)
    canvas = device.empty((CHANNELS, *size), np.float32)
    taken = pixels if ends[0][0].shape[3] == shape.tiles.tile_px else enlarge.output
    extract, accumulate = _plan_tiles(device, shape, ends, taken, canvas)
    check = plan_picture.plan_clip_and_range(device, canvas)
    fix = None
    if shape.color_fix != "none":
        planner = {"adain": plan_picture.plan_adain, "wavelet": plan_picture.plan_wavelet}[shape.color_fix]
        fix = planner(device, canvas, enlarge.output)
    planes = canvas if fix is None else fix.output
    output = plan_picture.plan_luma(device, planes) if shape.grey else plan_picture.plan_pixels(device, planes)
    strip = device.pinned(math.prod((shape.strip_rows, *shape.output_shape[1:])))
    return PicturePlan(shape, pixels, enlarge, canvas, extract, accumulate, check, fix, output, strip)


def _plan_tiles(
    device: KernelDevice, shape: PictureShape, ends: Ends, taken: DeviceArray, canvas: DeviceArray
) -> tuple[tuple[Plan, ...], tuple[Plan, ...]]:
    """taken: what the tiles are cut from, the pixels or the enlarged ones."""
    tiles, factor = shape.tiles, shape.upscale_factor
    side = tiles.tile_px * factor
    rows, columns = (
        _weights_on_device(device, tuple(start * factor for start in starts), side, length)
        for starts, length in zip((tiles.tops, tiles.lefts), shape.size, strict=True)
    )
    extract, accumulate = [], []
    for index, tile in enumerate(tiles.tiles):
        # Engines that take several tiles at once have them one behind the other.
        source, target = (_tile_of(info, address, index) for info, address in ends)
        own_side = source.shape[3]
        places = (tile.top, tile.left, tile.height, tile.width)
        top, left, height, width = (value * own_side // tiles.tile_px for value in places)
        extract.append(
            plan_picture.plan_extract(
                device, taken, top=top, left=left, height=height, width=width, side=own_side, out=source
            )
        )
        weights, place = (rows[tile.row], columns[tile.column]), (tile.top * factor, tile.left * factor)
        accumulate.append(plan_picture.plan_accumulate(device, canvas, target, *weights, top=place[0], left=place[1]))
    return tuple(extract), tuple(accumulate)


def _weights_on_device(device: KernelDevice, starts: tuple[int, ...], side: int, length: int) -> list[DeviceArray]:
    vectors = np.stack(blend_weights(starts, side, length))
    whole, step = device.upload(vectors), vectors[0].nbytes
    pointers = range(whole.pointer, whole.pointer + vectors.nbytes, step)
    return [DeviceArray(pointer, vectors[0].shape, whole.dtype, whole) for pointer in pointers]


def _tile_of(info: TensorInfo, address: int, index: int) -> DeviceArray:
    """Return where the index-th tile of a picture is in a network's tensor."""
    shape, dtype = (1, *info.shape[1:]), np.dtype(info.dtype)
    place = index % info.shape[0]
    return DeviceArray(address + place * math.prod(shape) * dtype.itemsize, shape, dtype)
