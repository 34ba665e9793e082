"""TIFF directories: metadata appended to a file that has its pixels, and the check of what was written.

libvips writes no EXIF into TIFF, and Pillow none into BigTIFF. A directory may lie anywhere, so the old one stays
where it is, unused, and a new one with all entries of both goes to the end.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from intsr.runtime.image_formats import JPEG_EXIF_HEADER
from intsr.runtime.image_metadata import EXIF_IFD, GPS_IFD, ImageMetadata

WIDTH, HEIGHT, SAMPLES, BITS = 256, 257, 277, 258
PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT = 262, 338, 339
_STRIP_OFFSETS, _STRIP_BYTES = 273, 279
# Where the pixels lie: strips and tiles.
PLACES = (273, 279, 324, 325)
XMP, ICC = 700, 34675
_INTEROPERABILITY_IFD = 40965
_POINTERS = (EXIF_IFD, GPS_IFD, _INTEROPERABILITY_IFD)
# What libvips says of the size in centimetres: it does not know.
_RESOLUTION = (282, 283, 296)
_BYTE, _LONG, _UNDEFINED, _LONG8 = 1, 4, 7, 16
# Of each type of value: its bytes, and the bytes that a change of byte order turns round.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_UNIT_BYTES = _TYPE_BYTES | {5: 4, 10: 4}
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True, slots=True)
class Entry:
    """kind: TIFF's number of the type. data: the values, little-endian."""

    kind: int
    data: bytes

    @property
    def count(self) -> int:
        return len(self.data) // _TYPE_BYTES[self.kind]

    @property
    def numbers(self) -> tuple[int, ...]:
        return struct.unpack(f"<{self.count}{_CODES[self.kind]}", self.data)


# Directories inside a directory stand under their pointer's tag.
Directory: TypeAlias = "dict[int, Entry | Directory]"


@dataclass(frozen=True, slots=True)
class Layout:
    """order: `<` or `>`, for struct. big: BigTIFF, with offsets of 64 bits."""

    order: str
    big: bool

    def unpack(self, code: str, file: BinaryIO) -> tuple[int, ...]:
        """Raises struct.error at the end of the file."""
        return struct.unpack(self.order + code, file.read(struct.calcsize(self.order + code)))


def read_directory(file: BinaryIO) -> tuple[Directory, Layout, int]:
    """The first directory of a file, with those it points to, and where the next one is, 0 for nowhere.

    Raises ValueError, OverflowError, struct.error.
    """
    file.seek(0)
    order = {b"II": "<", b"MM": ">"}.get(file.read(2))
    if order is None:
        raise ValueError("no TIFF header")
    (version,) = struct.unpack(order + "H", file.read(2))
    layout = Layout(order, version == 43)
    file.seek(8 if layout.big else 4)
    (offset,) = layout.unpack("Q" if layout.big else "I", file)
    directory, following = _read_entries(file, layout, offset, depth=0)
    return directory, layout, following


def _read_entries(file: BinaryIO, layout: Layout, offset: int, depth: int) -> tuple[Directory, int]:
    file.seek(offset)
    (count,) = layout.unpack("Q" if layout.big else "H", file)
    heads = [layout.unpack("HHQ8s" if layout.big else "HHI4s", file) for _ in range(count)]
    following = file.read(8 if layout.big else 4)
    directory: Directory = {}
    room = _size_bytes(file)
    for tag, kind, count, inline in heads:
        if kind not in _TYPE_BYTES:
            continue
        size_bytes = count * _TYPE_BYTES[kind]
        data = bytes(inline)[:size_bytes]
        if size_bytes > len(inline):  # type: ignore[arg-type]
            file.seek(*struct.unpack(layout.order + ("Q" if layout.big else "I"), inline))  # type: ignore[arg-type]
            # What lies about its length, or has many entries share one place, must not cost memory.
            room -= size_bytes
            data = file.read(size_bytes) if room >= 0 else b""
        if len(data) != size_bytes:
            raise ValueError(f"tag {tag} ends early")
        entry = Entry(kind, data if layout.order == "<" else _turned(data, _UNIT_BYTES[kind]))
        # EXIF's directories lie one in another, never deeper.
        nested = tag in _POINTERS and depth < 2 and kind in (_LONG, _LONG8, 13)
        place = int.from_bytes(entry.data, "little")
        directory[tag] = _read_entries(file, layout, place, depth + 1)[0] if nested else entry
    return directory, int.from_bytes(following, "little" if layout.order == "<" else "big")


def _size_bytes(file: BinaryIO) -> int:
    here, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(here)
    return end


def _turned(data: bytes, unit_bytes: int) -> bytes:
    return b"".join(data[at : at + unit_bytes][::-1] for at in range(0, len(data), unit_bytes))


def append_directory(path: Path, metadata: ImageMetadata) -> None:
    """path: a whole little-endian TIFF without metadata. Raises OSError, ValueError, struct.error."""
    with path.open("r+b") as file:
        directory, layout, _ = read_directory(file)
        if layout.order != "<":
            raise ValueError("a big-endian TIFF")
        described = {tag: entry for tag, entry in directory.items() if tag not in _RESOLUTION}
        if metadata.exif:
            described |= read_directory(io.BytesIO(metadata.exif.removeprefix(JPEG_EXIF_HEADER)))[0]
        if metadata.xmp:
            described[XMP] = Entry(_BYTE, metadata.xmp)
        if metadata.icc_profile:
            described[ICC] = Entry(_UNDEFINED, metadata.icc_profile)
        # The pixels' own entries hold whatever the EXIF says.
        described |= {tag: entry for tag, entry in directory.items() if tag not in _RESOLUTION}
        start = file.seek(0, os.SEEK_END)
        start += file.write(b"\0" * (start % 2))
        file.write(directory_bytes(described, start, layout.big))
        file.seek(8 if layout.big else 4)
        file.write(struct.pack("<Q" if layout.big else "<I", start))


def directory_bytes(directory: Directory, start: int, big: bool) -> bytes:
    """A little-endian directory with its values and the directories in it, for the offset `start` of a file."""
    pointer, inline_bytes = ("Q", 8) if big else ("I", 4)
    head = struct.pack("<Q" if big else "<H", len(directory))
    behind = start + len(head) + len(directory) * (20 if big else 12) + inline_bytes
    tail = b""
    for tag, item in sorted(directory.items()):
        place = behind + len(tail)
        if isinstance(item, dict):
            tail += directory_bytes(item, place, big)
            item = Entry(_LONG8 if big else _LONG, struct.pack("<" + pointer, place))
        data = item.data
        if len(data) > inline_bytes:
            tail += data + b"\0" * (len(data) % 2)
            data = struct.pack("<" + pointer, place)
        head += struct.pack("<HH" + pointer, tag, item.kind, item.count) + data.ljust(inline_bytes, b"\0")
    return head + b"\0" * inline_bytes + tail


def check_tiff(path: Path, size: tuple[int, int], channels: int, bits: int) -> None:
    """Raises ValueError where the file is not a picture of (width, height) = size, or its strips are not there."""
    with path.open("rb") as file:
        directory, _, _ = read_directory(file)
        end = file.seek(0, os.SEEK_END)
    found = {tag: numbers(directory, tag) for tag in (WIDTH, HEIGHT, SAMPLES, BITS, _STRIP_OFFSETS, _STRIP_BYTES)}
    said = (*found[WIDTH], *found[HEIGHT], *(found[SAMPLES] or (1,)), *set(found[BITS]))
    if said != (*size, channels, bits):
        raise ValueError(f"the written file has {said}, not {(*size, channels, bits)}")
    strips = zip(found[_STRIP_OFFSETS], found[_STRIP_BYTES], strict=True)
    if not all(0 < size_bytes <= end - offset for offset, size_bytes in strips):
        raise ValueError("the written file ends early")


def numbers(directory: Directory, tag: int) -> tuple[int, ...]:
    """The whole numbers under a tag; none where there is no such thing."""
    entry = directory.get(tag)
    return entry.numbers if isinstance(entry, Entry) and entry.kind in _CODES else ()


def values(directory: Directory, tag: int) -> bytes:
    """The bytes under a tag; none where there is no such thing."""
    entry = directory.get(tag)
    return entry.data if isinstance(entry, Entry) else b""
