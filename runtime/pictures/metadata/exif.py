"""Directories of TIFF, which EXIF is made of too: read byte by byte as they are, and written again.

What a value means is left to others: text in any encoding and numbers of any kind come out as they went in.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD = 0x8769, 0x8825, 0xA005
POINTERS = (EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD)
BYTE, SHORT, LONG, UNDEFINED, LONG8 = 1, 3, 4, 7, 16
_IFD = 13
# Of each type of value: its bytes, and the bytes that a change of byte order turns round.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_UNIT_BYTES = _TYPE_BYTES | {5: 4, 10: 4}
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# What broken data raises.
BROKEN_DIRECTORY = (ValueError, struct.error, OverflowError)


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


def read_directory(
    file: BinaryIO, skip: Container[int] = (), broken: list[int] | None = None, offset: int = 0
) -> tuple[Directory, Layout, int]:
    """The directory at an offset of a file, with those it points to, and where the next one is, 0 for nowhere.

    skip: tags of this directory that are not read. broken: takes the tags that cannot be read, which are then left
    out. offset: 0 for the first. Raises ValueError, OverflowError, struct.error; with `broken` only where there is no
    directory.
    """
    file.seek(0)
    order = {b"II": "<", b"MM": ">"}.get(file.read(2))
    if order is None:
        raise ValueError("no TIFF header")
    (version,) = struct.unpack(order + "H", file.read(2))
    layout = Layout(order, version == 43)
    file.seek(8 if layout.big else 4)
    (first,) = layout.unpack("Q" if layout.big else "I", file)
    offset = offset or first
    directory, following = _Reader(file, layout, skip, broken).read(offset, depth=0)
    return directory, layout, following


@dataclass(slots=True)
class _Reader:
    """Goes from a directory to those in it. The fields are those of `read_directory`."""

    file: BinaryIO
    layout: Layout
    skip: Container[int]
    broken: list[int] | None

    def read(self, offset: int, depth: int) -> tuple[Directory, int]:
        """The entries at an offset, and what follows them. Raises as `read_directory`."""
        self.file.seek(offset)
        (count,) = self.layout.unpack("Q" if self.layout.big else "H", self.file)
        heads = [self.layout.unpack("HHQ8s" if self.layout.big else "HHI4s", self.file) for _ in range(count)]
        following = self.file.read(8 if self.layout.big else 4)
        directory: Directory = {}
        room, seen = _size_bytes(self.file), set[int]()
        for tag, kind, length, inline in heads:
            # Once each: directories named a thousand times in directories named a thousand times would take for ever.
            if tag in seen or (depth == 0 and tag in self.skip):
                continue
            seen.add(tag)
            try:
                if kind not in _TYPE_BYTES:
                    raise ValueError(f"tag {tag} has the unknown type {kind}")
                # What lies about its length, or has many entries share one place, must not cost memory.
                item = self._entry(tag, kind, length, bytes(inline), room)
                room -= len(item.data)
                # EXIF's directories lie one in another, never deeper.
                nested = tag in POINTERS and depth < 2 and kind in (LONG, LONG8, _IFD)
                place = int.from_bytes(item.data, "little")
                directory[tag] = self.read(place, depth + 1)[0] if nested else item
            except BROKEN_DIRECTORY:
                if self.broken is None and kind in _TYPE_BYTES:
                    raise
                if self.broken is not None:
                    self.broken.append(tag)
        return directory, int.from_bytes(following, "little" if self.layout.order == "<" else "big")

    def _entry(self, tag: int, kind: int, count: int, inline: bytes, room: int) -> Entry:
        size_bytes = count * _TYPE_BYTES[kind]
        data = inline[:size_bytes]
        if size_bytes > len(inline):
            self.file.seek(*struct.unpack(self.layout.order + ("Q" if self.layout.big else "I"), inline))
            data = self.file.read(size_bytes) if size_bytes <= room else b""
        if len(data) != size_bytes:
            raise ValueError(f"tag {tag} ends early")
        return Entry(kind, data if self.layout.order == "<" else _turned(data, _UNIT_BYTES[kind]))


def _size_bytes(file: BinaryIO) -> int:
    here, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(here)
    return end


def _turned(data: bytes, unit_bytes: int) -> bytes:
    return b"".join(data[at : at + unit_bytes][::-1] for at in range(0, len(data), unit_bytes))


def directory_bytes(directory: Directory, start: int, big: bool, order: str = "<") -> bytes:
    """A directory with its values and the directories in it, for the offset `start` of a file. order: `<` or `>`."""
    pointer, inline_bytes = ("Q", 8) if big else ("I", 4)
    head = struct.pack(order + ("Q" if big else "H"), len(directory))
    behind = start + len(head) + len(directory) * (20 if big else 12) + inline_bytes
    tail = b""
    for tag, item in sorted(directory.items()):
        place = behind + len(tail)
        if isinstance(item, dict):
            tail += directory_bytes(item, place, big, order)
            item = Entry(LONG8 if big else LONG, struct.pack("<" + pointer, place))
        data = item.data if order == "<" else _turned(item.data, _UNIT_BYTES[item.kind])
        if len(data) > inline_bytes:
            tail += data + b"\0" * (len(data) % 2)
            data = struct.pack(order + pointer, place)
        head += struct.pack(order + "HH" + pointer, tag, item.kind, item.count) + data.ljust(inline_bytes, b"\0")
    return head + b"\0" * inline_bytes + tail


def numbers(directory: Directory, tag: int) -> tuple[int, ...]:
    """The whole numbers under a tag; none where there is no such thing."""
    entry = directory.get(tag)
    return entry.numbers if isinstance(entry, Entry) and entry.kind in _CODES else ()


def values(directory: Directory, tag: int) -> bytes:
    """The bytes under a tag; none where there is no such thing."""
    entry = directory.get(tag)
    return entry.data if isinstance(entry, Entry) else b""
