"""A picture's numbers for measuring: 16-bit ones on the scale of 8-bit ones, transparency refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.runtime.pictures.reader import read_image

# 65535 = 255 * 257: full scale stays full scale.
_LEVELS_OF_16_BITS = 257.0


def read_pixels(path: Path) -> Array:
    """Read (H, W, 3) RGB or (H, W) grey, float64 in [0, 255]; 16-bit components keep their fractions.

    Upright, and without an alpha channel that is opaque. Raises ImageError for what `read_image` refuses, and for
    real transparency, which has no colour of its own to measure.
    """
    image = read_image(path)
    if image.alpha is not None:
        raise ImageError(path, "transparent pixels", "an opaque picture", "flatten it onto a background first")
    pixels = image.pixels.astype(np.float64)
    return pixels / _LEVELS_OF_16_BITS if image.pixels.dtype == np.uint16 else pixels
