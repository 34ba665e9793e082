"""How large a pixel is on paper, as each format says it. In between it is the body of PNG's `pHYs`.

That is pixels along x and y, and a unit: 1 for a metre, 0 where only the ratio of the two is known.
"""

from __future__ import annotations

import struct

from intsr.runtime.pictures.metadata.exif import SHORT, Directory, Entry, numbers

# Tags of TIFF and EXIF.
RESOLUTION_TAGS = (282, 283, 296)
_RATIONAL = 5
_INCHES_A_METRE = 1 / 0.0254
# JFIF's and TIFF's numbers of units differ by one.
_RATIO, _INCH, _CENTIMETRE = 0, 1, 2
# What rounding to whole pixels a metre makes of whole pixels an inch.
_ROUNDING = 0.0128


def density_from_jfif(unit: int, x: int, y: int) -> bytes:
    """Empty where it says nothing: square pixels of any size, or nonsense."""
    if not (0 < x < 1 << 16 and 0 < y < 1 << 16) or unit not in (_RATIO, _INCH, _CENTIMETRE):
        return b""
    if unit == _RATIO:
        return b"" if x == y else struct.pack(">IIB", x, y, 0)
    a_metre = _INCHES_A_METRE if unit == _INCH else 100
    return struct.pack(">IIB", round(x * a_metre), round(y * a_metre), 1)


def jfif_from_density(density: bytes) -> tuple[int, int, int] | None:
    """Unit, x and y; None where JFIF cannot say it."""
    x, y, metre = struct.unpack(">IIB", density)
    if not metre:
        found = (_RATIO, x, y)
    elif x % 100 == y % 100 == 0 and not (_per_inch(x) and _per_inch(y)):
        found = (_CENTIMETRE, x // 100, y // 100)
    else:
        found = (_INCH, round(x / _INCHES_A_METRE), round(y / _INCHES_A_METRE))
    return found if all(0 < side < 1 << 16 for side in found[1:]) else None


def resolution_from_density(density: bytes) -> Directory:
    """Entries of a TIFF; none where it cannot say it."""
    x, y, metre = struct.unpack(">IIB", density)
    if not x or not y:
        return {}
    if not metre:
        pairs, unit = ((x, 1), (y, 1)), _RATIO
    elif (across := _per_inch(x)) and (down := _per_inch(y)):
        pairs, unit = ((across, 1), (down, 1)), _INCH
    else:
        pairs, unit = ((x, 100), (y, 100)), _CENTIMETRE
    entries = (*(Entry(_RATIONAL, struct.pack("<II", *pair)) for pair in pairs), _short(unit + 1))
    return dict(zip(RESOLUTION_TAGS, entries, strict=True))


def density_from_resolution(directory: Directory) -> bytes:
    """Of the entries of a TIFF; empty where they say nothing, or nonsense."""
    sides = [_ratio(directory.get(tag)) for tag in RESOLUTION_TAGS[:2]]
    unit = next(iter(numbers(directory, RESOLUTION_TAGS[2])), _INCH + 1) - 1
    if unit == _RATIO:
        return density_from_jfif(unit, round(sides[0]), round(sides[1]))
    a_metre = {_INCH: _INCHES_A_METRE, _CENTIMETRE: 100}.get(unit, 0)
    x, y = (round(side * a_metre) for side in sides)
    return struct.pack(">IIB", x, y, 1) if 0 < x < 1 << 31 and 0 < y < 1 << 31 else b""


def _ratio(entry: Entry | Directory | None) -> float:
    if not isinstance(entry, Entry) or entry.kind != _RATIONAL or len(entry.data) < 8:
        return 0.0
    above, below = struct.unpack("<II", entry.data[:8])
    return above / below if below else 0.0


def turned_density(density: bytes) -> bytes:
    """Rows become columns."""
    return density[4:8] + density[:4] + density[8:]


def dpi_from_density(density: bytes) -> tuple[float, float]:
    """As Pillow writes it into BMP, which holds pixels a metre; of a ratio, the ratio."""
    x, y, metre = struct.unpack(">IIB", density)
    inches_a_metre = 39.3701 if metre else 1.0
    return x / inches_a_metre, y / inches_a_metre


def density_from_bmp(dpi: tuple[float, float] | None) -> bytes:
    """As Pillow reads it; empty where there is none."""
    x, y = (round(side * 39.3701) for side in dpi or (0, 0))
    return struct.pack(">IIB", x, y, 1) if 0 < x < 1 << 31 and 0 < y < 1 << 31 else b""


def text_from_density(density: bytes) -> str:
    """For people."""
    x, y, metre = struct.unpack(">IIB", density)
    if not metre:
        return f"pixels of {x}:{y}"
    across, down = (round(side / _INCHES_A_METRE) for side in (x, y))
    return f"{across} dpi" if across == down else f"{across}x{down} dpi"


def _per_inch(a_metre: int) -> int:
    """0 where it is no whole number."""
    nearest = round(a_metre / _INCHES_A_METRE)
    return nearest if abs(a_metre / _INCHES_A_METRE - nearest) <= _ROUNDING else 0


def _short(value: int) -> Entry:
    return Entry(SHORT, struct.pack("<H", value))
