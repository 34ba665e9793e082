"""The types that a picture may come in from a program: NumPy arrays and Pillow images."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from intsr.errors import ImageError
from intsr.runtime.networks import Array

if TYPE_CHECKING:
    from PIL import Image

    Picture: TypeAlias = Array | Image.Image


def pixels_from_picture(image: Picture) -> Array:
    """(H, W) or (H, W, 3), uint8 or uint16. Raises ImageError for anything else."""
    if not isinstance(image, np.ndarray):
        if not hasattr(image, "mode"):
            raise ImageError("picture", f"a {type(image).__name__}", "a NumPy array or a Pillow image")
        if image.mode not in ("RGB", "L", "I;16"):
            raise ImageError("picture", f"mode {image.mode}", "RGB, L or I;16", 'convert it with .convert("RGB")')
        image = np.asarray(image)
    colour_axes = image.shape[2:]
    if image.ndim not in (2, 3) or colour_axes not in ((), (3,)) or 0 in image.shape:
        raise ImageError("picture", f"shape {image.shape}", "(H, W, 3) or (H, W), not empty")
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError("picture", f"dtype {image.dtype}", "uint8 or uint16")
    return image


def copy_of(image: Picture) -> Picture:
    """One that its owner cannot change any more; what is no whole picture as it is."""
    try:
        return image.copy()
    except Exception:
        # No picture, or a broken one: it is told at its turn.
        return image


def picture_like(image: Picture, pixels: Array) -> Picture:
    """`pixels` as the type of `image`."""
    if isinstance(image, np.ndarray):
        return pixels
    from PIL import Image

    return Image.fromarray(pixels)
