"""Pictures that are too small for a model to see what is in them: made larger first, and smaller again at the end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.runtime.tiles.enlarge import FILTERS

# Less than this is no picture to any model: what it made would be of its own.
MOST_TIMES = 16


def grown_size(height_px: int, width_px: int, upscale_factor: int, min_side_px: int) -> tuple[int, int]:
    """Return (height, width) to enlarge from, so that the shorter side of the output has `min_side_px` at least."""
    shorter, least = min(height_px, width_px), -(-min_side_px // upscale_factor)
    if shorter >= least:
        return height_px, width_px
    return height_px * least // shorter, width_px * least // shorter


def check_growth(height_px: int, width_px: int, upscale_factor: int, min_side_px: int, where: object) -> None:
    """Raise UsageError for a picture that would be made more than `MOST_TIMES` as large for `min_side_px`."""
    least = -(-min_side_px // (upscale_factor * MOST_TIMES))
    if min(height_px, width_px) < least:
        expected = f"at least {least} a side: the model is for outputs of {min_side_px} pixels and more"
        raise UsageError(where, f"{width_px}x{height_px} pixels", expected)


def resized(pixels: Array, size: tuple[int, int], resize_filter: str) -> Array:
    """(H, W, 3) or (H, W), uint8 or uint16 -> the same of another (height, width), by a filter of `FILTERS`."""
    if pixels.dtype == np.uint8:
        return _resized(pixels, size, resize_filter)
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    made = [_resized(plane.astype(np.float32), size, resize_filter) for plane in np.moveaxis(planes, 2, 0)]
    whole: Array = np.rint(np.clip(np.stack(made, axis=-1), 0, np.iinfo(pixels.dtype).max)).astype(pixels.dtype)
    return whole[..., 0] if pixels.ndim == 2 else whole


def _resized(pixels: Array, size: tuple[int, int], resize_filter: str) -> Array:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    made: Array = np.array(image.resize(size[::-1], FILTERS[resize_filter]))
    return made


def shrunk(rows: Iterable[Array], size: tuple[int, int], resize_filter: str) -> Array:
    """All rows of a picture as one of `size`, (height, width)."""
    return resized(np.concatenate(list(rows)), size, resize_filter)
