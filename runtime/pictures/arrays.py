"""Arrays from what Pillow decoded: a few rows at a time, so that a large picture is not in memory three times."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from intsr.arrays import Array

GREY_MODES = ("1", "L", "LA")
GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
ALPHA_MODES = ("LA", "PA", "RGBA")
_ROWS = 64
PEAK_16 = 65535


def arrays_from_image(
    image: Image.Image, has_alpha: bool, peak: int = PEAK_16
) -> tuple[Array, Array | None, tuple[str, ...]]:
    """Turn a decoded image into (H, W, 3) or (H, W), uint8 or uint16; the alpha (H, W), None where opaque; and notes.

    image: in one of the modes above. Of a palette, the colours. peak: white in a mode of 16 bits; it becomes 65535.
    """
    to_rows, notes = _rows_from_mode(image, has_alpha, peak)
    first = to_rows(image.crop((0, 0, image.width, 1)))
    channels = first.shape[2] - has_alpha
    shape = (image.height, image.width)
    pixels = np.empty(shape if channels == 1 else (*shape, channels), first.dtype)
    alpha = np.empty(shape, first.dtype) if has_alpha else None
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        rows = to_rows(image.crop((0, top, image.width, bottom)))
        pixels[top:bottom] = rows[..., 0] if channels == 1 else rows[..., :channels]
        if alpha is not None:
            alpha[top:bottom] = rows[..., -1]
    return pixels, None if alpha is None or is_opaque(alpha) else alpha, notes


def is_opaque(alpha: Array) -> bool:
    """alpha: (H, W) uint8 or uint16."""
    return int(alpha.min()) == np.iinfo(alpha.dtype).max


def turned(pixels: Array, orientation: int) -> Array:
    """Turn (H, W) or (H, W, C) as stored upright, contiguous. orientation: EXIF's, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # What remains is a mirroring of rows, of columns, of both.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _rows_from_mode(
    image: Image.Image, has_alpha: bool, peak: int
) -> tuple[Callable[[Image.Image], Array], tuple[str, ...]]:
    """Return a function from rows as an image to (h, W, C), and notes."""
    if image.mode in GREY_16_MODES:
        return lambda rows: _full_scale(np.asarray(rows).astype(np.uint16)[..., None], peak), ()
    if image.mode == "CMYK" and not has_alpha:
        convert, note = rgb_from_cmyk(image.info.get("icc_profile") or b"")
        return lambda rows: np.asarray(convert(rows)), (note,)
    grey = image.mode in GREY_MODES
    mode = ("LA" if has_alpha else "L") if grey else ("RGBA" if has_alpha else "RGB")
    return lambda rows: np.atleast_3d(np.asarray(rows.convert(mode))), ()


def _full_scale(values: Array, peak: int) -> Array:
    """uint16 in [0, peak] -> in [0, 65535], to the nearest."""
    if peak == PEAK_16:
        return values
    scaled: Array = ((values.astype(np.uint32) * PEAK_16 + peak // 2) // peak).astype(np.uint16)
    return scaled


def rgb_from_cmyk(profile: bytes) -> tuple[Callable[[Image.Image], Image.Image], str]:
    """Return a function from inks to light, and a note that says how it does it."""
    note = "CMYK became RGB by rule of thumb: its ICC profile is broken" if profile else ""
    note = note or "CMYK became RGB by rule of thumb: it has no ICC profile"
    if not profile:
        return lambda rows: rows.convert("RGB"), note
    try:
        from PIL import ImageCms

        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImportError, OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return lambda rows: rows.convert("RGB"), note
    return lambda rows: ImageCms.applyTransform(rows, transform) or rows, "CMYK became sRGB by its ICC profile"


def note_of_other_profile(profile: bytes, grey: bool) -> str:
    """Return a note where an ICC profile says nothing of such pixels; else nothing. Source: ICC.1:2022, 7.2."""
    of, fitting = profile[16:20], (b"GRAY", b"RGB ") if grey else (b"RGB ",)
    if profile[36:40] != b"acsp" or of in fitting:
        return ""
    name = of.decode("ascii", "replace").strip()
    return f"ICC was dropped: it is a profile of {name}, and the picture is {'grey' if grey else 'RGB'}"


def note_of_broken_profile(profile: bytes) -> str:
    """Return a note where an ICC profile is not whole, or no reader of profiles takes it; else nothing."""
    if not profile:
        return ""
    broken = int.from_bytes(profile[:4], "big") != len(profile)
    if not broken:
        try:
            from PIL import ImageCms

            ImageCms.ImageCmsProfile(BytesIO(profile))
        except ImportError:
            pass
        except (OSError, ValueError, TypeError):
            broken = True
    return "ICC was dropped: the profile is broken" if broken else ""
