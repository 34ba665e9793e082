"""XMP, text of XML, made to fit the enlarged picture: what would be wrong of it is mended or taken out.

Source: XMP Specification, Parts 2 and 3; Ultra HDR Image Format 1.1 and Motion Photo Format 1.0 (Android).
"""

from __future__ import annotations

import re

_WIDTHS, _HEIGHTS = b"exif:PixelXDimension|tiff:ImageWidth", b"exif:PixelYDimension|tiff:ImageLength"
# The orientation, which is applied; what names things behind the pixels of the file, which do not come along; and
# places in pixels of the original.
_EXTENDED = b"xmpNote:HasExtendedXMP"
_GAIN_MAP, _FILM = rb"hdrgm:\w+", rb"G?Camera:(?:MotionPhoto|MicroVideo)\w*"
_PLACES = (b"exif:SubjectArea", b"exif:SubjectLocation")
_GONE = b"|".join((b"tiff:Orientation", _EXTENDED, _GAIN_MAP, _FILM, *_PLACES))
# Lists of what lies behind the pixels; and places, which are lists as a rule.
_GONE_LISTS = (b"Container:Directory", b"GContainer:Directory", *_PLACES)
# Nothing here looks far for its end: XMP comes from strangers.
_NOT_IN_NAME = rb"(?<![\w:.-])"
_VALUE = rb"\s*=\s*(?:\"[^\"<]*\"|'[^'<]*')"


def _anywhere(names: bytes) -> re.Pattern[bytes]:
    """A property as an attribute, and as an element of its own."""
    attribute, element = rb"\s?" + _NOT_IN_NAME + b"(?:" + names + b")" + _VALUE, rb"<(?P<name>" + names + b")"
    return re.compile(attribute + b"|" + element + rb"\s*(?:/>|>[^<]*</(?P=name)\s*>)")


def _sizes(names: bytes) -> re.Pattern[bytes]:
    attribute = _NOT_IN_NAME + b"(?:" + names + rb")\s*=\s*[\"'](?P<number>\s*\d+\s*)(?=[\"'])"
    return re.compile(attribute + b"|<(?:" + names + rb")\s*>(?P<content>\s*\d+\s*)(?=</)")


_GONE_ANYWHERE, _EXTENDED_ANYWHERE = _anywhere(_GONE), _anywhere(_EXTENDED)
_GAIN_MAP_ANYWHERE, _FILM_ANYWHERE = _anywhere(_GAIN_MAP), _anywhere(_FILM)
_SIZES = (_sizes(_WIDTHS), _sizes(_HEIGHTS))


def xmp_for_upright(xmp: bytes) -> bytes:
    """Without its orientation, and without what belongs to the original file alone."""
    xmp = _GONE_ANYWHERE.sub(b"", xmp)
    for name in _GONE_LISTS:
        xmp = _without_element(xmp, name)
    return xmp


def xmp_with_sizes(xmp: bytes, width_px: int, height_px: int) -> bytes:
    """The sizes that are mentioned set to these."""
    for pattern, side_px in zip(_SIZES, (width_px, height_px), strict=True):
        xmp = pattern.sub(lambda found, side_px=side_px: _replaced(found, b"%d" % side_px), xmp)  # type: ignore[misc]
    return xmp


def notes_from_xmp(xmp: bytes) -> tuple[str, ...]:
    """What the original file has behind its pixels, by its XMP, and the result will not have. For people."""
    notes = []
    if _EXTENDED_ANYWHERE.search(xmp):
        notes.append("extended XMP was dropped: only the first part of it is read")
    if _GAIN_MAP_ANYWHERE.search(xmp):
        notes.append(GAIN_MAP_NOTE)
    if _FILM_ANYWHERE.search(xmp):
        notes.append("the film of the motion photo was dropped")
    return tuple(notes)


GAIN_MAP_NOTE = "the HDR gain map was dropped: what was read is the picture for common screens"


def _replaced(found: re.Match[bytes], value: bytes) -> bytes:
    group = "number" if found["number"] is not None else "content"
    begin = found.start(group) - found.start()
    return found[0][:begin] + value


def _without_element(xmp: bytes, name: bytes) -> bytes:
    """Without the elements of a name and all that is in them; they do not lie in one another."""
    parts, at, end = [], 0, b"</" + name + b">"
    while (begin := xmp.find(b"<" + name, at)) >= 0 and (stop := xmp.find(end, begin)) >= 0:
        follows = xmp[begin + len(name) + 1 : begin + len(name) + 2]
        keep = not follows or follows not in b"> \t\r\n"
        parts.append(xmp[at : begin + len(name) + 1 if keep else begin])
        at = begin + len(name) + 1 if keep else stop + len(end)
    return b"".join((*parts, xmp[at:]))
