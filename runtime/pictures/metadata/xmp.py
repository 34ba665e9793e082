"""XMP, text of XML, made to fit the enlarged picture: the orientation goes, and sides become those of the file."""

from __future__ import annotations

import re

_WIDTHS, _HEIGHTS = b"exif:PixelXDimension|tiff:ImageWidth", b"exif:PixelYDimension|tiff:ImageLength"
# Nothing here looks far for its end: XMP comes from strangers.
_NOT_IN_NAME = rb"(?<![\w:.-])"
_ORIENTATION = re.compile(
    rb"\s?" + _NOT_IN_NAME + rb"tiff:Orientation\s*=\s*(?:\"[^\"<]*\"|'[^'<]*')"
    rb"|<tiff:Orientation\s*>[^<]*</tiff:Orientation\s*>"
)


def _sides(names: bytes) -> re.Pattern[bytes]:
    """Return a pattern for these properties, as attributes and as elements; its first group is all but the number."""
    attribute, element = _NOT_IN_NAME + b"(?:" + names + rb")\s*=\s*[\"']\s*", b"<(?:" + names + rb")\s*>\s*"
    return re.compile(b"(" + attribute + b"|" + element + rb")\d+(?=\s*[\"'<])")


_SIDES = (_sides(_WIDTHS), _sides(_HEIGHTS))


def xmp_for_size(xmp: bytes, width_px: int, height_px: int) -> bytes:
    """Return the XMP without its orientation, which has been applied, and with these sides where it names some."""
    xmp = _ORIENTATION.sub(b"", xmp)
    for pattern, side_px in zip(_SIDES, (width_px, height_px), strict=True):
        xmp = pattern.sub(rb"\g<1>%d" % side_px, xmp)
    return xmp
