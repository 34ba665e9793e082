"""What a picture carries beside its pixels: EXIF, XMP and ICC, made to fit the enlarged picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from PIL import Image

_ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
_EXIF_WIDTH, _EXIF_HEIGHT = 0xA002, 0xA003
# Of the first IFD only what describes the picture, not how its file stores the pixels: in a TIFF both lie there.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
# As Pillow takes it out of the pictures that it turns.
_XMP_ORIENTATION = re.compile(rb"\s?tiff:Orientation=\"[0-9]\"|<tiff:Orientation>[0-9]</tiff:Orientation>")
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """exif: as a TIFF header and IFDs, orientation taken out. icc_profile, xmp: as in the file. Empty where none."""

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""


def orientation_from_exif(exif: Image.Exif) -> int:
    """1 to 8; 1 where there is none. Raises whatever Pillow raises on broken EXIF."""
    value = exif.get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def metadata_from_image(image: Image.Image, size: tuple[int, int], upscale_factor: int) -> ImageMetadata:
    """size: (width, height) when upright; sizes in EXIF become those of the enlarged picture."""
    xmp = next((image.info[key] for key in _XMP_KEYS if key in image.info), b"")
    icc_profile = image.info.get("icc_profile") or b""
    return metadata_from_exif(image.getexif(), icc_profile, _bytes(xmp), size, upscale_factor)


def metadata_from_exif(
    exif: Image.Exif, icc_profile: bytes, xmp: bytes, size: tuple[int, int], upscale_factor: int
) -> ImageMetadata:
    """As `metadata_from_image`, of the parts. The orientation is taken out of all of them."""
    return ImageMetadata(_exif_bytes(exif, size, upscale_factor), icc_profile, _XMP_ORIENTATION.sub(b"", xmp))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def metadata_for_size(metadata: ImageMetadata, width_px: int, height_px: int) -> ImageMetadata:
    """The same, with the sizes that its EXIF mentions set to these. Broken EXIF is dropped."""
    if not metadata.exif:
        return metadata
    try:
        exif = Image.Exif()
        exif.load(metadata.exif)
        details = exif.get_ifd(EXIF_IFD)
        sizes = {_EXIF_WIDTH: width_px, _EXIF_HEIGHT: height_px}
        changed = {tag: side_px for tag, side_px in sizes.items() if details.get(tag, side_px) != side_px}
        if not changed:
            return metadata
        details.update(changed)
        return replace(metadata, exif=exif.tobytes())
    except Exception:  # Pillow's EXIF reader and writer raise many kinds on broken data.
        return replace(metadata, exif=b"")


def _exif_bytes(found: Image.Exif, size: tuple[int, int], upscale_factor: int) -> bytes:
    kept = Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in found:
            kept[tag] = found[tag]
    for ifd in (EXIF_IFD, GPS_IFD):
        values = dict(found.get_ifd(ifd))
        if values:
            kept.get_ifd(ifd).update(values)
    details = kept.get_ifd(EXIF_IFD)
    for tag, side_px in zip((_EXIF_WIDTH, _EXIF_HEIGHT), size, strict=True):
        if tag in details:
            details[tag] = side_px * upscale_factor
    has_content = len(kept) > 0 or any(kept.get_ifd(ifd) for ifd in (EXIF_IFD, GPS_IFD))
    return kept.tobytes() if has_content else b""
