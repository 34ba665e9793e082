"""What the boxes of an AVIF say of its pixels, which Pillow does not: how deep they are, and in which colours.

Source: ISO/IEC 14496-12 (boxes, items), ISO/IEC 23008-12 (properties of items), AV1 in ISOBMFF 2.3.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

# Boxes in front of the pixels; a picture of a thousand tiles has about 64 KiB of them.
_MOST_HEAD_BYTES = 1 << 20
# A box that has four bytes of version and flags in front of what is in it.
_FULL_BYTES = 4
# ITU-T H.273: colours as in BT.709 and sRGB, values as in sRGB; and what nobody said.
_PRIMARIES_709, _TRANSFER_SRGB, _UNSPECIFIED = 1, 13, 2


def avif_is_deep(path: Path) -> bool:
    """More than 8 bits a channel. The third byte of `av1C`: tier, high_bitdepth, ... Raises OSError."""
    head = _head(path)
    at = head.find(b"av1C")
    return 0 <= at < len(head) - 6 and bool(head[at + 6] & 0x40)


def code_points_from_avif(path: Path) -> bytes:
    """Body of PNG's `cICP` for the decoded RGB; empty where they are those of sRGB, or nothing says so.

    Raises OSError.
    """
    colours = _nclx_of_primary_item(_head(path))
    if len(colours) < 4:
        return b""
    primaries, transfer = struct.unpack(">HH", colours[:4])
    primaries = _PRIMARIES_709 if primaries == _UNSPECIFIED else primaries
    transfer = _TRANSFER_SRGB if transfer == _UNSPECIFIED else transfer
    if (primaries, transfer) == (_PRIMARIES_709, _TRANSFER_SRGB) or max(primaries, transfer) > 255:
        return b""
    # Decoded pixels are RGB in the full range.
    return bytes((primaries, transfer, 0, 1))


def avif_has_gain_map(path: Path) -> bool:
    """Whether one of its items is made of a picture and its gain map. Source: ISO 21496-1. Raises OSError."""
    return b"tmap" in _box(_head(path), b"meta", b"iinf")


def _head(path: Path) -> bytes:
    """The file up to its pixels, or as much of it as is worth reading."""
    with path.open("rb") as file:
        return file.read(_MOST_HEAD_BYTES)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and bodies, as far as they can be followed."""
    at = 0
    while at + 8 <= len(data):
        size_bytes, kind = struct.unpack(">I4s", data[at : at + 8])
        begin = 8
        if size_bytes == 1 and at + 16 <= len(data):
            size_bytes, begin = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size_bytes = size_bytes or len(data) - at
        if size_bytes < begin:
            return
        yield kind, data[at + begin : at + size_bytes]
        at += size_bytes


def _box(data: bytes, *kinds: bytes) -> bytes:
    """The body of the first box of the last kind, in the first one of the kind before it, and so on."""
    for kind in kinds:
        data = next((body for found, body in _boxes(data) if found == kind), b"")
        data = data[_FULL_BYTES:] if kind == b"meta" else data
    return data


def _nclx_of_primary_item(head: bytes) -> bytes:
    """Behind the name of the kind of a `colr` box of code points; empty where there is none."""
    meta = _box(head, b"meta")
    primary = _box(meta, b"pitm")
    if not primary:
        # A film alone: all that is said is said of it.
        at = head.find(b"colrnclx")
        return head[at + 8 : at + 15] if at >= 0 else b""
    wanted = int.from_bytes(primary[_FULL_BYTES:][: 2 if primary[0] == 0 else 4], "big")
    properties = list(_boxes(_box(meta, b"iprp", b"ipco")))
    for number in _properties_of_item(_box(meta, b"iprp", b"ipma"), wanted):
        kind, body = properties[number - 1] if 0 < number <= len(properties) else (b"", b"")
        if kind == b"colr" and body[:4] == b"nclx":
            return body[4:]
    return b""


def _properties_of_item(associations: bytes, wanted: int) -> list[int]:
    """Numbers, from 1, of the properties that `ipma` gives to an item."""
    file = io.BytesIO(associations)
    version, flags = file.read(1), file.read(3)
    wide_item, wide_number = version > b"\0", bool(flags[-1:] and flags[-1] & 1)
    (count,) = struct.unpack(">I", file.read(4).rjust(4, b"\0"))
    for _ in range(min(count, len(associations))):
        item = int.from_bytes(file.read(4 if wide_item else 2), "big")
        # The highest bit says whether a reader must understand the property.
        width, mask = (2, 0x7FFF) if wide_number else (1, 0x7F)
        length = int.from_bytes(file.read(1), "big")
        found = [int.from_bytes(file.read(width), "big") & mask for _ in range(length)]
        if item == wanted:
            return found
    return []
