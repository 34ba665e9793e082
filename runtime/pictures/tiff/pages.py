"""Which directory of a TIFF is the picture: not a preview, not a mask, and never what a camera's sensor saw.

Source: TIFF 6.0, sections 2 and 8; Adobe TIFF Technical Note 1 (SubIFDs); DNG Specification 1.7, chapters 2 and 4.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from intsr.errors import ImageError
from intsr.runtime.pictures.tiff.ifd import BROKEN_DIRECTORY, COMPRESSION, HEIGHT, PHOTOMETRIC, WIDTH, Ifd, read_ifd

_SUBFILE, _OLD_SUBFILE, _SUB_DIRECTORIES = 254, 255, 330
_REDUCED, _MASK = 1, 4
_OLD_REDUCED = 2
# What tells which directory is which.
_WANTED = (_SUBFILE, _OLD_SUBFILE, _SUB_DIRECTORIES, WIDTH, HEIGHT, PHOTOMETRIC, COMPRESSION)
_MASK_PHOTOMETRIC = 4
# Mosaics and linear light of sensors; how cameras pack them: Kodak, Nikon, Sony, Pentax, Samsung, Epson; DNG's own.
_RAW_PHOTOMETRICS = frozenset({32803, 34892})
_RAW_COMPRESSIONS = frozenset({262, 32767, 32769, 32770, 32772, 32867, 34713, 34892, 52546, 65000, 65535})
# Canon's mark behind the header: its first picture is a preview that does not say so.
_CANON = b"CR"
_CANON_AT = 8
NO_SUB_DIRECTORY = -1


@dataclass(frozen=True, slots=True)
class Page:
    """A directory of the file, and where it stands."""

    # Among the directories that follow one another.
    number: int
    # Among those inside it; `NO_SUB_DIRECTORY` for itself.
    sub: int
    # Only what tells the kind of a page.
    ifd: Ifd

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored; 0 where there is none."""
        return self.ifd.first(WIDTH), self.ifd.first(HEIGHT)

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def is_mask(self) -> bool:
        of_mask = self.ifd.first(PHOTOMETRIC) == _MASK_PHOTOMETRIC
        return of_mask or bool(self.ifd.first(_SUBFILE) & _MASK)

    @property
    def is_preview(self) -> bool:
        of_old = self.ifd.first(_OLD_SUBFILE) == _OLD_REDUCED
        return of_old or bool(self.ifd.first(_SUBFILE) & _REDUCED)

    @property
    def is_raw(self) -> bool:
        of_sensor = self.ifd.first(PHOTOMETRIC) in _RAW_PHOTOMETRICS
        return of_sensor or self.ifd.first(COMPRESSION) in _RAW_COMPRESSIONS


def picture_page(path: Path, file: BinaryIO) -> tuple[Page, tuple[str, ...]]:
    """Find the page that is the picture, and say what the others are. file: of `path`, a TIFF.

    Raises ImageError where there is none or the file is camera raw; ValueError, OverflowError, struct.error where the
    first directory cannot be read.
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
    frames = [page for page in whole if page.sub == NO_SUB_DIRECTORY or page is picture]
    return picture, _notes(picture, frames, any(page.is_mask for page in pages))


def _notes(picture: Page, frames: list[Page], masked: bool) -> tuple[str, ...]:
    notes = []
    others = [page for page in frames if page.number != picture.number]
    if others:
        note, largest = (
            f"only the first of {len(others) + 1} frames was read",
            max(others, key=lambda page: page.area),
        )
        if largest.area > picture.area:
            own, other = ("x".join(map(str, page.size)) for page in (picture, largest))
            note += f", of {own} pixels; another one has {other}"
        notes.append(note)
    return (*notes, "a mask for transparency was not read") if masked else tuple(notes)


def _pages(file: BinaryIO) -> Iterator[Page]:
    """Yield one page after another, each followed by those inside it. Raises as `picture_page`, for the first."""
    seen, number, following = set[int](), 0, 0
    # Directories of their own bytes fit into the file; those that lie across one another would take for ever.
    room = file.seek(0, os.SEEK_END)
    while number == 0 or (following and following not in seen and room >= 0):
        try:
            ifd = read_ifd(file, _WANTED, following)
        except BROKEN_DIRECTORY:
            if number == 0:
                raise
            return
        seen.add(ifd.offset)
        room -= ifd.size_bytes
        yield Page(number, NO_SUB_DIRECTORY, ifd)
        for sub, place in enumerate(ifd.numbers.get(_SUB_DIRECTORIES, ())):
            if room < 0 or place in seen:
                return
            seen.add(place)
            try:
                inner = read_ifd(file, _WANTED, place)
            except BROKEN_DIRECTORY:
                continue
            room -= inner.size_bytes
            yield Page(number, sub, inner)
        number, following = number + 1, ifd.following
