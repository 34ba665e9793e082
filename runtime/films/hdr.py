"""What an HDR film says of the display that it was made on, in the words of x264's and x265's options."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

# AVMasteringDisplayMetadata: x and y of red, green, blue and white, the least and the largest luminance, as pairs of
# numerator and denominator; then whether each kind is known.
_MASTERING = struct.Struct("=20i2i")
# The units of those options: chromaticity, and candela a square metre. Source: SMPTE ST 2086, H.265 D.2.28.
_CHROMATICITY, _LUMINANCE = 50_000, 10_000
MASTERING, LIGHT_LEVEL = "mastering-display", "content-light"


def hdr_from_side_data(side_data: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Return what is there of `MASTERING` and `LIGHT_LEVEL`, with their values. side_data: of a PyAV frame."""
    found = {data.type.name: bytes(data) for data in side_data}
    result = []
    mastering = found.get("MASTERING_DISPLAY_METADATA", b"")
    if len(mastering) >= _MASTERING.size:
        *numbers, has_primaries, has_luminance = _MASTERING.unpack_from(mastering)
        if has_primaries and has_luminance:
            result.append((MASTERING, _mastering(numbers)))
    light = found.get("CONTENT_LIGHT_LEVEL", b"")
    if len(light) >= 8:
        result.append((LIGHT_LEVEL, ",".join(map(str, struct.unpack_from("=2I", light)))))
    return tuple(result)


def _mastering(numbers: list[int]) -> str:
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    values = [Fraction(numerator, denominator or 1) for numerator, denominator in pairs]
    red, green, blue, white = ([round(value * _CHROMATICITY) for value in values[i : i + 2]] for i in range(0, 8, 2))
    least, most = (round(value * _LUMINANCE) for value in values[8:])
    places = (("G", green), ("B", blue), ("R", red), ("WP", white))
    words = "".join(f"{name}({x},{y})" for name, (x, y) in places)
    return f"{words}L({most},{least})"
