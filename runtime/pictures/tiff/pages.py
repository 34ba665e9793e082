"""The directories (IFDs) of a TIFF, read before any library decodes it: which of them is the picture.

Not a preview, not a mask, and never what a camera's sensor saw. Source: TIFF 6.0, sections 2 and 8; BigTIFF, as Aware
Systems describe it; Adobe TIFF Technical Note 1 (SubIFDs); DNG Specification 1.7, chapters 2 and 4.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from intsr.errors import ImageError

# What tells which directory is which, beside some of the next.
_SUBFILE, _OLD_SUBFILE, _SUB_DIRECTORIES = 254, 255, 330
# What says how pixels are stored.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, STRIP_ROWS, PLANES, TILE_WIDTH, TILE_ROWS = 277, 278, 284, 322, 323
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 332, 338, 339, 530
_PIXEL_TAGS = (
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, STRIP_ROWS, PLANES, TILE_WIDTH, TILE_ROWS),
    *(INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING),
)
_WANTED = (_SUBFILE, _OLD_SUBFILE, _SUB_DIRECTORIES, *_PIXEL_TAGS)
# Types that hold whole numbers, BYTE, SHORT, LONG, IFD, LONG8 and IFD8, with their codes for struct.
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_REDUCED, _MASK, _OLD_REDUCED, _MASK_PHOTOMETRIC = 1, 4, 2, 4
# Mosaics and linear light of sensors; how cameras pack them: Kodak, Nikon, Sony, Pentax, Samsung, Epson; DNG's own.
_RAW_PHOTOMETRICS = frozenset({32803, 34892})
_RAW_COMPRESSIONS = frozenset({262, 32767, 32769, 32770, 32772, 32867, 34713, 34892, 52546, 65000, 65535})
# Canon's mark behind the header: its first picture is a preview that does not say so.
_CANON, _CANON_AT = b"CR", 8


@dataclass(frozen=True, slots=True)
class Page:
    """A directory of the file: the whole numbers in it that are of use here, and where it stands."""

    # Among the directories that follow one another; and among those inside of that one, None for itself.
    number: int
    sub: int | None
    numbers: Mapping[int, tuple[int, ...]]
    # Tags that say how pixels are stored, and that cannot be read.
    broken: tuple[int, ...]
    # In the file; and of the next one, 0 for none.
    offset: int
    following: int
    # Of the entries.
    size_bytes: int
    # Of the file: `<` or `>`, for struct; BigTIFF has offsets of 64 bits.
    order: str
    big: bool

    def first(self, tag: int, default: int = 0) -> int:
        return next(iter(self.numbers.get(tag, ())), default)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored; 0 where there is none."""
        return self.first(WIDTH), self.first(HEIGHT)

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def is_mask(self) -> bool:
        return self.first(PHOTOMETRIC) == _MASK_PHOTOMETRIC or bool(self.first(_SUBFILE) & _MASK)

    @property
    def is_preview(self) -> bool:
        return self.first(_OLD_SUBFILE) == _OLD_REDUCED or bool(self.first(_SUBFILE) & _REDUCED)

    @property
    def is_raw(self) -> bool:
        return self.first(PHOTOMETRIC) in _RAW_PHOTOMETRICS or self.first(COMPRESSION) in _RAW_COMPRESSIONS


def picture_page(path: Path, file: BinaryIO) -> tuple[Page, tuple[str, ...]]:
    """Find the page that is the picture, and say what the others are. file: of `path`, a TIFF.

    Raises ImageError where there is none or the file is camera raw; ValueError, OverflowError, struct.error where the
    first directory, or what the picture's says of its pixels, cannot be read.
    """
    pages = list(_pages(file))
    file.seek(_CANON_AT)
    if file.read(len(_CANON)) == _CANON or any(page.is_raw for page in pages):
        expected, fix = "a developed picture", "develop it first in a raw converter, and save it as TIFF or PNG"
        raise ImageError(path, "camera raw: what a sensor saw, with a preview beside it", expected, fix)
    whole = [page for page in pages if page.area and not page.is_preview and not page.is_mask]
    if not whole:
        got = "a TIFF with nothing but a preview" if any(page.area for page in pages) else "a TIFF without a picture"
        raise ImageError(path, got, "a whole picture", "take the original that it is a preview of")
    # Some have the full picture inside of a small one that does not say that it is a preview.
    picture = max((page for page in whole if page.number == whole[0].number), key=lambda page: page.area)
    if picture.broken:
        raise ValueError(f"broken tag {picture.broken[0]}")
    frames = [page for page in whole if page.sub is None or page is picture]
    return picture, _notes(picture, frames, any(page.is_mask for page in pages))


def _notes(picture: Page, frames: list[Page], masked: bool) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if others := [page for page in frames if page.number != picture.number]:
        note = f"only the first of {len(others) + 1} frames was read"
        largest = max(others, key=lambda page: page.area)
        if largest.area > picture.area:
            own, other = ("x".join(map(str, page.size)) for page in (picture, largest))
            note += f", of {own} pixels; another one has {other}"
        notes = (note,)
    return (*notes, "a mask for transparency was not read") if masked else notes


def _pages(file: BinaryIO) -> Iterator[Page]:
    """Yield one page after another, each followed by those inside it. Raises as `picture_page`, for the first."""
    seen, number, following = set[int](), 0, 0
    # Directories of their own bytes fit into the file; those that lie across one another would take for ever.
    room = file.seek(0, os.SEEK_END)
    while number == 0 or (following and following not in seen and room >= 0):
        try:
            page = _read_page(file, following, number)
        except (ValueError, struct.error, OverflowError):
            if number == 0:
                raise
            return
        seen.add(page.offset)
        room -= page.size_bytes
        yield page
        for sub, place in enumerate(page.numbers.get(_SUB_DIRECTORIES, ())):
            if room < 0 or place in seen:
                return
            seen.add(place)
            with suppress(ValueError, struct.error, OverflowError):
                inner = _read_page(file, place, number, sub)
                room -= inner.size_bytes
                yield inner
        number, following = number + 1, page.following


def _read_page(file: BinaryIO, offset: int, number: int, sub: int | None = None) -> Page:
    """Read the directory at an offset, 0 for the first.

    Raises ValueError, OverflowError, struct.error where there is none.
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
    broken = []
    # What lies about its place or length, or has many entries share one place, must not cost memory.
    end = room = file.seek(0, os.SEEK_END)
    for tag, kind, length, inline in heads:
        if tag not in _WANTED or tag in numbers or kind not in _CODES:
            continue
        size_bytes = length * struct.calcsize(order + _CODES[kind])
        if size_bytes > len(inline):
            file.seek(min(end, *struct.unpack(order + pointer, inline)))
            inline = file.read(size_bytes) if size_bytes <= room else b""
        if len(inline) >= size_bytes:
            room -= size_bytes
            numbers[tag] = struct.unpack(f"{order}{length}{_CODES[kind]}", inline[:size_bytes])
        elif tag in _PIXEL_TAGS:
            broken.append(tag)
    return Page(number, sub, numbers, tuple(broken), offset, following, count * entry_bytes, order, big)


def _unpack(file: BinaryIO, code: str) -> tuple[Any, ...]:
    """Raises struct.error at the end of the file."""
    return struct.unpack(code, file.read(struct.calcsize(code)))
