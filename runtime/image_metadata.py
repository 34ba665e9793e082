"""What a picture carries beside its pixels: EXIF, XMP and ICC, made to fit the enlarged picture."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from intsr.errors import ImageError

_ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_EXIF_WIDTH, _EXIF_HEIGHT = 0xA002, 0xA003
# Of the first IFD only what describes the picture, not how its file stores the pixels: in a TIFF both lie there.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """exif: as a TIFF header and IFDs, orientation taken out. icc_profile, xmp: as in the file. Empty where none."""

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""


def orientation_from_image(image: Image.Image) -> int:
    """1 to 8; 1 where there is none. Raises ImageError where EXIF is broken (`where` is left to the caller)."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # Pillow's EXIF reader raises many kinds on broken data.
        raise ImageError("EXIF", str(error)) from error
    return value if value in range(1, 9) else 1


def metadata_from_image(image: Image.Image, upscale_factor: int) -> ImageMetadata:
    """Of an image that has been turned upright already; sizes in EXIF become those of the enlarged picture."""
    xmp = next((image.info[key] for key in _XMP_KEYS if key in image.info), b"")
    return ImageMetadata(
        exif=_exif_bytes(image, upscale_factor),
        icc_profile=image.info.get("icc_profile") or b"",
        xmp=xmp.encode() if isinstance(xmp, str) else bytes(xmp),
    )


def _exif_bytes(image: Image.Image, upscale_factor: int) -> bytes:
    found, kept = image.getexif(), Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in found:
            kept[tag] = found[tag]
    for ifd in (_EXIF_IFD, _GPS_IFD):
        values = dict(found.get_ifd(ifd))
        if values:
            kept.get_ifd(ifd).update(values)
    details = kept.get_ifd(_EXIF_IFD)
    for tag, side_px in ((_EXIF_WIDTH, image.width), (_EXIF_HEIGHT, image.height)):
        if tag in details:
            details[tag] = side_px * upscale_factor
    has_content = len(kept) > 0 or any(kept.get_ifd(ifd) for ifd in (_EXIF_IFD, _GPS_IFD))
    return kept.tobytes() if has_content else b""
