"""Enlarging 8-bit pictures with Pillow's own integer arithmetic, as a reference for the device kernel.

A pass along an axis is a sum of pixels times weights in steps of 2**-22, plus a half, shifted and clipped to 8 bits;
x comes before y. Source: Pillow, src/libImaging/Resample.c.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intsr.arrays import Array

_PRECISION_BITS = 32 - 8 - 2


def _bicubic(x: Array) -> Array:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Array) -> Array:
    def sinc(values: Array) -> Array:
        # Not np.sinc: its order of operations differs from Pillow's.
        return np.where(values == 0, 1.0, np.sin(values * np.pi) / np.where(values == 0, 1.0, values * np.pi))

    return np.where((x >= -3) & (x < 3), sinc(x) * sinc(x / 3), 0.0)


def _box(x: Array) -> Array:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


# Filter and half of its width in pixels.
FILTERS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "bicubic": (_bicubic, 2),
    "lanczos": (_lanczos, 3),
    "box": (_box, 0.5),
}


def resize_weights(length_px: int, upscale_factor: int, resize_filter: str) -> tuple[Array, Array]:
    """Return, for each output pixel of an axis, its first input pixel int32 (L f,) and its weights int32 (L f, taps).

    Weights are in steps of 2**-22; windows that the edge cuts are filled up with zeros.
    """
    function, support = FILTERS[resize_filter]
    centers = (np.arange(length_px * upscale_factor) + 0.5) * (1 / upscale_factor)
    # Towards zero, as C converts.
    first = np.maximum((centers - support + 0.5).astype(np.int32), 0)
    stops = np.minimum((centers + support + 0.5).astype(np.int32), length_px)
    positions = first[:, None] + np.arange(int(2 * support))
    values = np.where(positions < stops[:, None], function(positions - centers[:, None] + 0.5), 0.0)
    # One after the other, as C adds.
    totals = values.cumsum(axis=1)[:, -1:]
    scaled = values / totals * (1 << _PRECISION_BITS)
    return first, (scaled + np.copysign(0.5, scaled)).astype(np.int32)


def _along_rows(pixels: Array, first: Array, weights: Array) -> Array:
    """(L, ...) uint8 -> (L f, ...) uint8."""
    sums = np.full((len(first), *pixels.shape[1:]), 1 << (_PRECISION_BITS - 1), np.int64)
    for tap in range(weights.shape[1]):
        rows = pixels[np.minimum(first + tap, len(pixels) - 1)].astype(np.int64)
        sums += rows * weights[:, tap].reshape(-1, *[1] * (pixels.ndim - 1))
    return np.clip(sums >> _PRECISION_BITS, 0, 255).astype(np.uint8)


def enlarge(pixels: Array, upscale_factor: int, resize_filter: str) -> Array:
    """(H, W, 3) uint8 -> (H f, W f, 3) uint8."""
    across = _along_rows(pixels.swapaxes(0, 1), *resize_weights(pixels.shape[1], upscale_factor, resize_filter))
    return _along_rows(across.swapaxes(0, 1), *resize_weights(pixels.shape[0], upscale_factor, resize_filter))
