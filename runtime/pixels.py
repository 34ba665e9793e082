"""A picture's exact numbers, for measuring: 16-bit colour included, transparency refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from intsr.errors import ImageError
from intsr.runtime.batch import PICTURE_SUFFIXES
from intsr.runtime.image_io import READ_FORMATS, read_image
from intsr.runtime.networks import Array

__all__ = ["PICTURE_SUFFIXES", "read_pixels"]

# 65535 = 255 * 257: full scale stays full scale.
_LEVELS_OF_16_BITS = 257.0
_GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I;16N")


def read_pixels(path: Path) -> Array:
    """(H, W, 3) RGB or (H, W) grey, float64 in [0, 255]; 16-bit components keep their fractions.

    Upright, and without an alpha channel that is opaque. Raises ImageError for what `read_image` refuses, and for
    real transparency, which has no colour of its own to measure.
    """
    image = read_image(path)
    if image.alpha is not None:
        raise ImageError(path, "transparent pixels", "an opaque picture", "flatten it onto a background first")
    pixels = image.pixels.astype(np.float64)
    if image.pixels.dtype == np.uint16:
        return pixels / _LEVELS_OF_16_BITS
    low = _low_bytes_of_colour(path)
    return pixels if low is None else (pixels * 256 + low) / _LEVELS_OF_16_BITS


def _low_bytes_of_colour(path: Path) -> Array | None:
    """(H, W, 3) uint8, or None where the file's colours have 8 bits.

    Pillow keeps the high bytes of 16-bit colour only. Told that the byte order is the other one, it keeps the low
    ones.
    """
    with Image.open(path, formats=READ_FORMATS) as image:
        arguments = image.tile[0].args if image.tile else ""
        raw_mode = str(arguments[0] if isinstance(arguments, tuple) else arguments)
        if ";16" not in raw_mode or image.mode in _GREY_16_MODES:
            return None
        if image.format != "PNG" or raw_mode not in ("RGB;16B", "RGBA;16B"):
            kind = f"16 bits a component as {image.format} {image.mode}"
            raise ImageError(path, kind, "a 16-bit PNG, grey, RGB or RGBA")
        image.tile = [image.tile[0]._replace(args=raw_mode.replace(";16B", ";16L"))]
        return np.array(ImageOps.exif_transpose(image))[..., :3]
