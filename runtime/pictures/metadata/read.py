"""What a picture that Pillow has opened carries beside its pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from PIL import Image

from intsr.runtime.pictures.metadata.exif import EXIF_HEADER, ORIENTATION
from intsr.runtime.pictures.picture import ImageMetadata

_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
_JPEG_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
# Metadata as text of a PNG, in hexadecimal; the last holds either.
_PNG_EXIF, _PNG_XMP, _PNG_APP1 = "Raw profile type exif", "Raw profile type xmp", "Raw profile type APP1"
# Text of a PNG that is metadata, or in which programs speak of themselves.
_USUAL_TEXTS = ("XML:com.adobe.xmp", "Software", "date:create", "date:modify", "date:timestamp")
_SRGB_GAMMA, _GAMMA_TOLERANCE = 0.45455, 0.001
_MOST_DPI = 1e6


def orientation_of_image(image: Image.Image) -> tuple[int, tuple[str, ...]]:
    """Return EXIF's orientation, 1 to 8, and a note where that cannot be told. Nothing is decoded."""
    _adopt_raw_profiles(image)
    try:
        # For a PNG, Pillow's own method decodes the whole picture: what it looks for may lie behind the pixels.
        return orientation_from_tags(Image.Image.getexif(image)), ()
    except Exception as error:  # Pillow raises many kinds on broken EXIF.
        return 1, (f"EXIF is broken, so the picture may lie on its side ({error})",)


def orientation_from_tags(tags: Mapping[int, Any]) -> int:
    """Return EXIF's orientation, 1 to 8; 1 where there is none."""
    value = tags.get(ORIENTATION, 1)
    # Some write it twice, or as a byte.
    value = value[0] if isinstance(value, tuple | bytes) and value else value
    return value if value in range(1, 9) else 1


def metadata_of_image(image: Image.Image, turned: bool) -> ImageMetadata:
    """Return what a decoded image carries. turned: whether rows of the file become columns."""
    _adopt_raw_profiles(image)
    info = image.info
    exif, icc_profile = info.get("exif"), info.get("icc_profile")
    xmp = next((info[key] for key in _XMP_KEYS if key in info), b"")
    iptc = [body for name, body in getattr(image, "applist", ()) if name == "APP13" and body.startswith(_PHOTOSHOP)]
    others = ["comment"] if "comment" in info else []
    # IPTC in several parts is rare, and what is in which of them nobody says.
    others += ["IPTC"] if len(iptc) > 1 else []
    others += _others_of_png(image) if image.format == "PNG" else []
    return ImageMetadata(
        exif if isinstance(exif, bytes) else b"",
        icc_profile if isinstance(icc_profile, bytes) else b"",
        xmp.encode() if isinstance(xmp, str) else xmp if isinstance(xmp, bytes) else b"",
        iptc[0] if len(iptc) == 1 else b"",
        dpi_of_upright(info.get("dpi"), turned),
        tuple(others),
    )


def dpi_of_upright(dpi: Any, turned: bool) -> tuple[float, float] | None:
    """Return a pair of positive numbers, swapped where rows become columns; None for anything else."""
    try:
        x, y = (float(side) for side in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not (math.isfinite(x) and math.isfinite(y) and 0 < x < _MOST_DPI and 0 < y < _MOST_DPI):
        return None
    return (y, x) if turned else (x, y)


def _others_of_png(image: Image.Image) -> list[str]:
    texts = getattr(image, "text", {})
    named = [name for name in texts if name not in _USUAL_TEXTS and not name.startswith("Raw profile type")]
    gamma = image.info.get("gamma", _SRGB_GAMMA)
    unusual = abs(gamma - _SRGB_GAMMA) > _GAMMA_TOLERANCE and not image.info.get("icc_profile")
    return ["text"] * bool(named) + ["gamma"] * unusual


def _adopt_raw_profiles(image: Image.Image) -> None:
    """Have EXIF and XMP that stand as text in a PNG where Pillow looks for them.

    Source: ImageMagick's and exiftool's `Raw profile type`: three lines, then numbers of two digits.
    """
    for key in (_PNG_EXIF, _PNG_XMP, _PNG_APP1):
        with suppress(ValueError):
            found = bytes.fromhex("".join(str(image.info.get(key, "")).split("\n")[3:]))
            if not found:
                continue
            if key == _PNG_XMP or found.startswith(_JPEG_XMP_HEADER):
                image.info.setdefault("xmp", found.removeprefix(_JPEG_XMP_HEADER))
            elif key == _PNG_EXIF or found.startswith(EXIF_HEADER):
                image.info.setdefault("exif", found)
