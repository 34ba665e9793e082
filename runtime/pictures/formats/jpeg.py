"""Segments of a JPEG that describe the picture: the comment, and IPTC in Photoshop's blocks.

Source: ISO/IEC 10918-1, B.2.4.5; Adobe Photoshop File Formats Specification, Image Resource Blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TypeAlias

# Markers and bodies.
JpegSegments: TypeAlias = tuple[tuple[int, bytes], ...]
# What one segment of a JPEG can carry: its length has 16 bits and counts itself.
JPEG_SEGMENT_BYTES = 65533
COMMENT, APP13 = 0xFE, 0xED
_PHOTOSHOP = b"Photoshop 3.0\0"
_BLOCK = b"8BIM"
# Small pictures of the original.
_LEFT_OUT = (1033, 1036)
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1"


def segments_from_jpeg(found: Iterable[tuple[str, bytes]]) -> JpegSegments:
    """found: names and bodies, as Pillow's `applist`. What is broken is left out."""
    found = list(found)
    comments = [(COMMENT, body) for name, body in found if name == "COM" and body]
    parts = [body for name, body in found if name == "APP13" and body.startswith(_PHOTOSHOP)]
    # A block may go on in the next segment.
    blocks = b"".join(_described(b"".join(part.removeprefix(_PHOTOSHOP) for part in parts)))
    step = JPEG_SEGMENT_BYTES - len(_PHOTOSHOP)
    resources = [(APP13, _PHOTOSHOP + blocks[at : at + step]) for at in range(0, len(blocks), step)]
    return (*comments, *resources)


def has_gain_map(found: Iterable[tuple[str, bytes]]) -> bool:
    """found: see above. Source: ISO 21496-1, Annex C."""
    return any(name == "APP2" and body.startswith(_GAIN_MAP) for name, body in found)


def names_of_segments(segments: JpegSegments) -> tuple[str, ...]:
    """For people."""
    names = {COMMENT: "comment", APP13: "IPTC"}
    return tuple(dict.fromkeys(names[marker] for marker, _ in segments))


def _described(blocks: bytes) -> Iterator[bytes]:
    """Those of the blocks that are whole and describe the picture, as they are."""
    at = 0
    while blocks[at : at + 4] == _BLOCK and at + 12 <= len(blocks):
        (number,) = struct.unpack(">H", blocks[at + 4 : at + 6])
        # A name whose length comes first, and then the data; each of them filled up to an even number.
        size_at = at + 6 + (blocks[at + 6] + 2) // 2 * 2
        size_bytes = int.from_bytes(blocks[size_at : size_at + 4].ljust(4, b"\xff"), "big")
        end = size_at + 4 + size_bytes
        if end > len(blocks):
            return
        if number not in _LEFT_OUT:
            yield blocks[at:end] + b"\0" * (size_bytes % 2)
        at = end + size_bytes % 2
