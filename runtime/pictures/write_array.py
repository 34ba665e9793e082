"""Write pictures that are there as arrays; `image_stream` does it for those that come in bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from intsr.arrays import Array
from intsr.runtime.pictures.formats.write_formats import (
    WRITE_FORMATS,
    WriteFormat,
    check_alpha_fits,
    check_format_fits,
    format_from_path,
    notes_for_output,
)
from intsr.runtime.pictures.metadata.fields import ImageMetadata
from intsr.runtime.pictures.writer import open_writer

__all__ = [
    "WRITE_FORMATS",
    "WriteFormat",
    "check_alpha_fits",
    "check_format_fits",
    "enlarge_alpha",
    "format_from_path",
    "notes_for_output",
    "write_image",
]

# Rows of an array that are interleaved with their transparency at a time.
_ROWS = 256


def enlarge_alpha(alpha: Array, upscale_factor: int) -> Array:
    """(H, W) uint8 or uint16 -> (H f, W f), by Lanczos, apart from the colours; constant alpha stays what it is."""
    height_px, width_px = (side * upscale_factor for side in alpha.shape)
    if int(alpha.min()) == int(alpha.max()):
        return np.full((height_px, width_px), alpha.flat[0], alpha.dtype)
    if alpha.dtype == np.uint8:
        return np.asarray(Image.fromarray(alpha).resize((width_px, height_px), Image.Resampling.LANCZOS))
    values = Image.fromarray(alpha.astype(np.float32)).resize((width_px, height_px), Image.Resampling.LANCZOS)
    rounded: Array = np.clip(np.rint(np.asarray(values)), 0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)
    return rounded


def write_image(
    path: Path, pixels: Array, alpha: Array | None, metadata: ImageMetadata, quality: int | None = None
) -> None:
    """pixels: (H, W, 3) or (H, W), uint8 or uint16. alpha: (H, W), of the same dtype. quality: see `open_writer`.

    Raises ImageError; then `path` is as it was.
    """
    height_px, width_px = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    with open_writer(
        path, width_px, height_px, channels, pixels.dtype, alpha is not None, metadata, quality=quality
    ) as writer:
        for top in range(0, height_px, _ROWS):
            rows = pixels[top : top + _ROWS]
            writer.write(rows if alpha is None else np.dstack([rows, alpha[top : top + _ROWS]]))
