"""Chunks of PNG that say how its values are meant: for screens, for printers, for high dynamic range."""

from __future__ import annotations

import struct
from pathlib import Path

from intsr.runtime.image_feed import PNG_SIGNATURE
from intsr.runtime.image_metadata import PngChunks

DENSITY, _SRGB, _PRIMARIES, _GAMMA, _CODE_POINTS = b"pHYs", b"sRGB", b"cHRM", b"gAMA", b"cICP"
# Name to length. Light of the mastering display and of the content come last.
_LENGTHS = {DENSITY: 9, _SRGB: 1, _PRIMARIES: 32, _GAMMA: 4, _CODE_POINTS: 4, b"mDCV": 24, b"cLLI": 8}
# What an ICC profile stands above.
_BELOW_ICC = (_SRGB, _PRIMARIES, _GAMMA)
# What sRGB is anyway. Source: PNG Specification, Third Edition, 11.3.2.5 and 11.3.2.6.
_USUAL = {
    (_GAMMA, struct.pack(">I", 45455)),
    (_PRIMARIES, struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    (_CODE_POINTS, bytes((1, 13, 0, 1))),
    (DENSITY, struct.pack(">IIB", 1, 1, 0)),
    *((_SRGB, bytes((intent,))) for intent in range(4)),
}


def chunks_from_png(path: Path, turned: bool) -> PngChunks:
    """Those in front of the pixels. turned: whether rows will be columns. Raises OSError."""
    found: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        file.seek(len(PNG_SIGNATURE))
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            following = file.tell() + length + 4
            if _LENGTHS.get(name) == length:
                found.setdefault(name, file.read(length))
            file.seek(following)
    if turned and DENSITY in found:
        density = found[DENSITY]
        found[DENSITY] = density[4:8] + density[:4] + density[8:]
    return tuple(found.items())


def chunks_beside_profile(chunks: PngChunks, icc_profile: bytes) -> PngChunks:
    """Those that still say something."""
    return tuple(item for item in chunks if not icc_profile or item[0] not in _BELOW_ICC)


def unusual_names(chunks: PngChunks) -> tuple[str, ...]:
    """Of those that say what a picture without them would not."""
    return tuple(name.decode() for name, body in chunks if (name, body) not in _USUAL)
