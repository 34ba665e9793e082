"""Enlarge a picture by a whole factor with Pillow's antialiased filters.

Whole, never by tiles: Pillow chooses the order of its two passes by the picture's shape, and 8-bit arithmetic rounds
and clips between them, so that a tile resized alone can differ from the same part of the whole by several levels.
8-bit pictures go through Pillow's 8-bit arithmetic, rounding included: models are trained on such inputs. 16-bit
pictures go through its float arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from intsr.runtime.networks import Array

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
CHANNELS = 3


def enlarge(pixels: Array, upscale_factor: int, resize_filter: str) -> Array:
    """pixels: (H, W, 3) or (H, W), uint8 or uint16 -> (H f, W f, 3) or (H f, W f), uint8 or float32 in [0, 1]."""
    height, width = pixels.shape[:2]
    size = (width * upscale_factor, height * upscale_factor)
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, FILTERS[resize_filter]))
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    result = np.empty((size[1], size[0], planes.shape[2]), np.float32)
    for channel in range(planes.shape[2]):
        plane = Image.fromarray(planes[..., channel].astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max))
        result[..., channel] = np.clip(plane.resize(size, FILTERS[resize_filter]), 0, 1)
    return result if pixels.ndim == 3 else result[..., 0]


def unit_part(enlarged: Array, top: int, left: int, height: int, width: int) -> Array:
    """A rectangle of what `enlarge` gave -> (3, height, width) float32 in [0, 1]; grey three times."""
    part = _unit(enlarged[top : top + height, left : left + width])
    return part.transpose(2, 0, 1) if part.ndim == 3 else np.broadcast_to(part, (CHANNELS, height, width))


def unit_channels(enlarged: Array) -> Iterator[Array]:
    """Three times (H, W) float32 in [0, 1], one after the other: all at once are as large as the output."""
    for channel in range(CHANNELS):
        yield _unit(enlarged[..., channel] if enlarged.ndim == 3 else enlarged)


def _unit(values: Array) -> Array:
    return values.astype(np.float32) / np.float32(255) if values.dtype == np.uint8 else values
