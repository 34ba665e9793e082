"""The whole numbers in a directory (IFD) of a TIFF, by which it is judged before any library decodes it.

Source: TIFF 6.0, section 2; BigTIFF, as Aware Systems describe it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, STRIP_ROWS, PLANES, TILE_WIDTH, TILE_ROWS = 277, 278, 284, 322, 323
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 332, 338, 339, 530
# What says how pixels are stored.
PIXEL_TAGS = (
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, STRIP_ROWS, PLANES, TILE_WIDTH, TILE_ROWS),
    *(INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING),
)
# Types that hold whole numbers, BYTE, SHORT, LONG, IFD, LONG8 and IFD8, with their codes for struct.
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# What broken data raises.
BROKEN_DIRECTORY = (ValueError, struct.error, OverflowError)


@dataclass(frozen=True, slots=True)
class Ifd:
    """One directory, as far as it was asked for."""

    numbers: Mapping[int, tuple[int, ...]]
    # In the file.
    offset: int
    # Of the next one, 0 for none.
    following: int
    # Of the entries.
    size_bytes: int
    # Of the file: `<` or `>`, for struct; BigTIFF has offsets of 64 bits.
    order: str
    big: bool

    def first(self, tag: int, default: int = 0) -> int:
        return next(iter(self.numbers.get(tag, ())), default)


def read_ifd(file: BinaryIO, wanted: Container[int], offset: int = 0, strict: bool = False) -> Ifd:
    """Read the directory at an offset, 0 for the first. wanted: tags. strict: a broken one among them is an error.

    Raises ValueError, OverflowError, struct.error where there is no directory.
    """
    file.seek(0)
    order = {b"II": "<", b"MM": ">"}.get(file.read(2))
    if order is None:
        raise ValueError("no TIFF header")
    big = _unpack(file, order + "H")[0] == 43
    pointer, entry_bytes = ("Q", 20) if big else ("I", 12)
    file.seek(8 if big else 4)
    (first,) = _unpack(file, order + pointer)
    offset = offset or first
    file.seek(offset)
    (count,) = _unpack(file, order + ("Q" if big else "H"))
    heads = [_unpack(file, order + ("HHQ8s" if big else "HHI4s")) for _ in range(count)]
    following = int.from_bytes(file.read(8 if big else 4), "little" if order == "<" else "big")
    numbers: dict[int, tuple[int, ...]] = {}
    # What lies about its length, or has many entries share one place, must not cost memory.
    room = file.seek(0, os.SEEK_END)
    for tag, kind, length, inline in heads:
        if tag not in wanted or tag in numbers or kind not in _CODES:
            continue
        code = f"{order}{length}{_CODES[kind]}"
        size_bytes = length * struct.calcsize(order + _CODES[kind])
        if size_bytes > len(inline):
            file.seek(*struct.unpack(order + pointer, inline))
            inline = file.read(size_bytes) if size_bytes <= room else b""
        if len(inline) >= size_bytes:
            room -= size_bytes
            numbers[tag] = struct.unpack(code, inline[:size_bytes])
        elif strict:
            raise ValueError(f"broken tag {tag}")
    return Ifd(numbers, offset, following, count * entry_bytes, order, big)


def _unpack(file: BinaryIO, code: str) -> tuple[Any, ...]:
    """Raises struct.error at the end of the file."""
    return struct.unpack(code, file.read(struct.calcsize(code)))
