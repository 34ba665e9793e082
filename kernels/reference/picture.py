"""Tiles, blending, colour fixes and 8-bit output as plain NumPy: references for the device kernels."""

from __future__ import annotations

import numpy as np

from intsr.arrays import Array

WAVELET_LEVELS = 5
VARIANCE_FLOOR = 1e-5
# Rec. 601.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _reflected(indices: Array, length: int) -> Array:
    """Indices past the end, mirrored at the last and the first element; all 0 where the length is 1."""
    if length == 1:
        return np.zeros_like(indices)
    place = indices % (2 * (length - 1))
    return np.where(place < length, place, 2 * (length - 1) - place)


def extract_tile(pixels: Array, *, top: int, left: int, height: int, width: int, side: int) -> Array:
    """A rectangle of (H, W, 3) uint8 -> (1, 3, side, side) float16 in [-1, 1], reflected at the bottom and right."""
    rows, columns = (_reflected(np.arange(side), length) for length in (height, width))
    part = pixels[top + rows[:, None], left + columns].transpose(2, 0, 1)
    unit = part.astype(np.float32) / np.float32(255)
    return (unit * np.float32(2) - np.float32(1)).astype(np.float16)[None]


def accumulate_tile(out: Array, tile: Array, rows: Array, columns: Array, *, top: int, left: int) -> Array:
    """(3, H, W) float32 plus a tile (1, 3, side, side) float16 in [-1, 1] as [0, 1], weighted; -> a new array.

    rows, columns: float32 weights of the tile's part inside the picture, which starts at (top, left).
    """
    height, width = len(rows), len(columns)
    unit = tile[0, :, :height, :width].astype(np.float32) * np.float32(0.5) + np.float32(0.5)
    result = out.copy()
    result[:, top : top + height, left : left + width] += unit * rows[:, None] * columns
    return result


def pixels_from_unit(planes: Array) -> Array:
    """(3, H, W) float32 in [0, 1], clipped -> (H, W, 3) uint8, rounded half to even."""
    levels = np.rint(np.clip(planes, np.float32(0), np.float32(1)) * np.float32(255))
    return levels.astype(np.uint8).transpose(1, 2, 0)


def luma_from_unit(planes: Array) -> Array:
    """(3, H, W) float32 in [0, 1] -> (H, W) uint8: Rec. 601, clipped, rounded half to even."""
    red, green, blue = planes
    luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return np.rint(np.clip(luma, np.float32(0), np.float32(1)) * np.float32(255)).astype(np.uint8)


def clip_and_range(planes: Array) -> tuple[Array, Array]:
    """(3, H, W) float32 -> clipped to [0, 1], a new array; its least and largest values before, (3, 2).

    The largest is infinite where a value is NaN or infinite: bytes would not show it.
    """
    finite = np.isfinite(planes).all(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        largest = np.where(finite, np.fmax.reduce(planes, axis=(1, 2)), np.float32(np.inf))
    least = np.fmin.reduce(planes, axis=(1, 2))
    return np.fmin(np.fmax(planes, np.float32(0)), np.float32(1)), np.stack([least, largest], axis=1)


def adain(target: Array, source: Array) -> Array:
    """Colours of `source` (H, W, 3) uint8 given to `target` (3, H, W) float32 in [0, 1]; -> a new array.

    (target - mean_t) std_s / std_t + mean_s a channel; unbiased variances, each plus 1e-5.
    """
    result = np.empty_like(target)
    for channel, values in enumerate(target):
        unit = source[..., channel] / 255.0
        (mean_t, std_t), (mean_s, std_s) = _mean_and_std(values.astype(np.float64)), _mean_and_std(unit)
        result[channel] = (values - np.float32(mean_t)) * np.float32(std_s / std_t) + np.float32(mean_s)
    return result


def _mean_and_std(values: Array) -> tuple[float, float]:
    variance = float(values.var(ddof=1)) if values.size > 1 else 0.0
    return float(values.mean()), float(np.sqrt(variance + VARIANCE_FLOOR))


def wavelet(target: Array, source: Array) -> Array:
    """High frequencies of `target` (3, H, W) float32 and low ones of `source` (H, W, 3) uint8; -> a new array.

    target + L(source - target), L five blurs [1 2 1] outer [1 2 1] / 16 with dilation 1, 2, 4, 8, 16, edges
    replicated.
    """
    low = source.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - target
    for level in range(WAVELET_LEVELS):
        for axis in (1, 2):
            indices, last = np.arange(low.shape[axis]), low.shape[axis] - 1
            before = low.take(np.maximum(indices - 2**level, 0), axis)
            after = low.take(np.minimum(indices + 2**level, last), axis)
            low = low * np.float32(0.5) + (before + after) * np.float32(0.25)
    return target + low
