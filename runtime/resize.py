"""Enlarge a picture by a whole factor with Pillow's antialiased filters, whole or tile by tile with equal results.

8-bit pictures go through Pillow's 8-bit arithmetic, rounding included: models are trained on such inputs. 16-bit
pictures go through Pillow's float arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from intsr.runtime.networks import Array

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True, slots=True)
class LowResolution:
    """A picture to be enlarged. planes: one RGB image (8 bits), or one or three float images in [0, 1] (16 bits)."""

    planes: tuple[Image.Image, ...]
    width_px: int
    height_px: int


def low_resolution_from_array(pixels: Array) -> LowResolution:
    """pixels: (H, W) or (H, W, 3), uint8 or uint16; grey becomes three equal channels when it is enlarged."""
    height, width = pixels.shape[:2]
    if pixels.dtype == np.uint8:
        rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        return LowResolution((Image.fromarray(np.ascontiguousarray(rgb)),), width, height)
    unit = pixels.astype(np.float32) / np.float32(65535)
    channels = (unit,) if unit.ndim == 2 else tuple(np.moveaxis(unit, 2, 0))
    return LowResolution(tuple(Image.fromarray(np.ascontiguousarray(channel)) for channel in channels), width, height)


def resize_box(
    source: LowResolution, box: tuple[int, int, int, int], upscale_factor: int, resize_filter: str
) -> Array:
    """The part of the enlarged picture that belongs to `box` (left, top, right, bottom; low-resolution pixels).

    Returns (3, h * factor, w * factor) float32 in [0, 1]. Pillow reads the filter's support from outside the box, so
    that tiles equal the same part of the whole enlarged picture.
    """
    left, top, right, bottom = box
    size = ((right - left) * upscale_factor, (bottom - top) * upscale_factor)
    planes = [plane.resize(size, FILTERS[resize_filter], box=box) for plane in source.planes]
    if planes[0].mode == "RGB":
        pixels = np.asarray(planes[0], np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels / np.float32(255))
    stacked = np.stack([np.asarray(plane, np.float32) for plane in planes])
    return np.ascontiguousarray(np.broadcast_to(np.clip(stacked, 0, 1), (3, size[1], size[0])))
