"""Enlarge a picture by a whole factor with Pillow's antialiased filters, as a whole or by bands of rows.

Pillow resizes along x first, rounds, then along y; rows are independent of each other along x, and along y a pixel
depends on a few rows around it. So a band, made with those rows and then cut, has the very bits of the whole. A
rectangle resized in one call has not: cut along x too, Pillow would round other intermediate values at its ends.
8-bit pictures go through Pillow's 8-bit arithmetic, rounding included: models are trained on such inputs. 16-bit
pictures go through its float arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from intsr.arrays import Array

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
CHANNELS = 3
# Pixels of the input on either side that an output pixel can depend on: the wider filter's support, and one for
# rounding.
CONTEXT_PX = 4


@dataclass(frozen=True, slots=True)
class Enlarger:
    """An enlarged picture, made band by band. resize_filter: of `FILTERS`."""

    # (H, W), (H, W, 3) or any number of channels, uint8 or uint16.
    pixels: Array
    upscale_factor: int
    resize_filter: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole, in pixels."""
        return self.pixels.shape[0] * self.upscale_factor, self.pixels.shape[1] * self.upscale_factor

    def rows(self, top: int, bottom: int) -> Array:
        """Return output rows [top, bottom): (h, W f) or (h, W f, C), uint8, or float32 in [0, 1] for 16 bits."""
        factor, height = self.upscale_factor, self.pixels.shape[0]
        first = max(top // factor - CONTEXT_PX, 0)
        last = min(-(-bottom // factor) + CONTEXT_PX, height)
        source = self.pixels[first:last]
        if source.dtype == np.uint8 and (source.ndim == 2 or source.shape[2] == CHANNELS):
            enlarged = self._both_passes(source)
        else:
            peak = np.float32(np.iinfo(source.dtype).max)
            planes = source[..., None] if source.ndim == 2 else source
            made = [self._plane(planes[..., index], peak) for index in range(planes.shape[2])]
            enlarged = made[0] if source.ndim == 2 else np.stack(made, axis=-1)
        return enlarged[top - first * factor : bottom - first * factor]

    def _plane(self, plane: Array, peak: np.float32) -> Array:
        if plane.dtype == np.uint8:
            return self._both_passes(np.ascontiguousarray(plane))
        enlarged = self._both_passes(plane.astype(np.float32) / peak)
        # Bicubic and Lanczos overshoot.
        return np.clip(enlarged, 0, 1, out=enlarged)

    def _both_passes(self, pixels: Array) -> Array:
        height, width = pixels.shape[:2]
        chosen, factor = FILTERS[self.resize_filter], self.upscale_factor
        across = Image.fromarray(pixels).resize((width * factor, height), chosen)
        return np.array(across.resize((width * factor, height * factor), chosen))


def enlarge(pixels: Array, upscale_factor: int, resize_filter: str) -> Array:
    """Enlarge a whole picture.

    (H, W, 3) or (H, W), uint8 or uint16 -> (H f, W f, 3) or (H f, W f), uint8 or float32 in [0, 1].
    """
    return Enlarger(pixels, upscale_factor, resize_filter).rows(0, pixels.shape[0] * upscale_factor)


def unit_part(enlarged: Array, top: int, left: int, height: int, width: int) -> Array:
    """Return a rectangle of what `enlarge` gave, or of what it takes, as (3, height, width) float32 in [0, 1]; grey
    three times.
    """
    part = _unit(enlarged[top : top + height, left : left + width])
    return part.transpose(2, 0, 1) if part.ndim == 3 else np.broadcast_to(part, (CHANNELS, height, width))


def unit_channels(enlarged: Array) -> Iterator[Array]:
    """Yield (H, W) float32 in [0, 1] three times: all channels at once would be as large as the output."""
    for channel in range(CHANNELS):
        yield _unit(enlarged[..., channel] if enlarged.ndim == 3 else enlarged)


def _unit(values: Array) -> Array:
    if values.dtype.kind != "u":
        return values
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
