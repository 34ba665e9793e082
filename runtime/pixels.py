"""Read a picture's exact numbers, for measuring: 8 or 16 bits a component, grey or colour, nothing converted."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from intsr.errors import ImageError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
# 65535 = 255 * 257: full scale stays full scale.
_LEVELS_OF_16_BITS = 257.0
_GREY_MODES = ("1", "L", "LA")
_GREY_16_MODES = ("I;16", "I;16L", "I;16B")


def read_pixels(path: Path) -> np.ndarray:
    """(H, W, 3) RGB or (H, W) grey, float64 in [0, 255]; 16-bit components keep their fractions.

    EXIF orientation is applied. An opaque alpha channel is dropped. Raises ImageError for a file that is missing,
    broken, over Pillow's pixel limit or of a kind that is not listed, and for real transparency, which has no
    colour of its own to measure.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _read(path)
    except FileNotFoundError as error:
        raise ImageError(path, "no such file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(path, f"over the pixel limit ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ImageError(path, f"not a readable picture ({error})", f"one of {', '.join(PICTURE_FORMATS)}") from error


def _read(path: Path) -> np.ndarray:
    with Image.open(path, formats=PICTURE_FORMATS) as image:
        if image.mode in _GREY_16_MODES:
            return np.asarray(ImageOps.exif_transpose(image), np.float64) / _LEVELS_OF_16_BITS
        raw_mode = _raw_mode(image)
        target = _target_mode(image, path)
        high = np.asarray(ImageOps.exif_transpose(image).convert(target), np.float64)
        pixels = high
        if ";16" in raw_mode:
            # Pillow keeps the high bytes of 16-bit colour only. Read as the other byte order, it keeps the low ones.
            if not (raw_mode in ("RGB;16B", "RGBA;16B") and image.format == "PNG" and target == image.mode):
                kind = f"16 bits a component as {image.format} {image.mode}"
                raise ImageError(path, kind, "a 16-bit PNG, grey, RGB or RGBA without a transparent colour")
            with Image.open(path, formats=PICTURE_FORMATS) as again:
                again.tile = [again.tile[0]._replace(args=raw_mode.replace(";16B", ";16L"))]
                low = np.asarray(ImageOps.exif_transpose(again), np.float64)
            pixels = (high * 256 + low) / _LEVELS_OF_16_BITS
    return _without_alpha(pixels, target, path)


def _raw_mode(image: Image.Image) -> str:
    arguments = image.tile[0].args if getattr(image, "tile", None) else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _target_mode(image: Image.Image, path: Path) -> str:
    if image.mode in _GREY_MODES:
        return "LA" if "A" in image.mode or "transparency" in image.info else "L"
    if image.mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        return "RGBA" if "A" in image.mode or "transparency" in image.info else "RGB"
    raise ImageError(path, f"pixels of kind {image.mode}", "8 or 16 bits a component, grey or RGB")


def _without_alpha(pixels: np.ndarray, mode: str, path: Path) -> np.ndarray:
    if not mode.endswith("A"):
        return pixels
    if pixels[..., -1].min() < 255:
        raise ImageError(path, "transparent pixels", "an opaque picture", "flatten it onto a background first")
    return pixels[..., 0] if mode == "LA" else pixels[..., :3]
