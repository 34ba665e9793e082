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
from intsr.runtime.pictures.formats.tiff import COMPRESSION, HEIGHT, PHOTOMETRIC, WIDTH
from intsr.runtime.pictures.metadata.exif import BROKEN_DIRECTORY, Directory, Layout, numbers, read_directory

_SUBFILE, _OLD_SUBFILE, _SUB_DIRECTORIES = 254, 255, 330
_REDUCED, _MASK = 1, 4
_OLD_REDUCED = 2
# What is not read to tell which directory is which.
_OTHERS = frozenset(range(65536)) - {
    _SUBFILE,
    _OLD_SUBFILE,
    _SUB_DIRECTORIES,
    WIDTH,
    HEIGHT,
    PHOTOMETRIC,
    COMPRESSION,
}
_MASK_PHOTOMETRIC = 4
# Mosaics and linear light of sensors; how cameras pack them: Kodak, Nikon, Sony, Pentax, Samsung, Epson; DNG's own.
_RAW_PHOTOMETRICS = frozenset({32803, 34892})
_RAW_COMPRESSIONS = frozenset({262, 32767, 32769, 32770, 32772, 32867, 34713, 34892, 52546, 65000, 65535})
# Canon's mark behind the header: its first picture is a preview that does not say so.
_CANON = b"CR"
_CANON_AT = 8
_ENTRY_BYTES = {False: 12, True: 20}
NO_SUB_DIRECTORY = -1


@dataclass(frozen=True, slots=True)
class Page:
    """number: among the directories that follow one another. sub: among those inside it, -1 for itself. offset: in
    the file. directory: only what tells the kind of a page.
    """

    number: int
    sub: int
    offset: int
    directory: Directory

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored; 0 where there is none."""
        return _first(self.directory, WIDTH), _first(self.directory, HEIGHT)

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def is_mask(self) -> bool:
        of_mask = _first(self.directory, PHOTOMETRIC) == _MASK_PHOTOMETRIC
        return of_mask or bool(_first(self.directory, _SUBFILE) & _MASK)

    @property
    def is_preview(self) -> bool:
        of_old = _first(self.directory, _OLD_SUBFILE) == _OLD_REDUCED
        return of_old or bool(_first(self.directory, _SUBFILE) & _REDUCED)

    @property
    def is_raw(self) -> bool:
        of_sensor = _first(self.directory, PHOTOMETRIC) in _RAW_PHOTOMETRICS
        return of_sensor or _first(self.directory, COMPRESSION) in _RAW_COMPRESSIONS


def picture_page(path: Path, file: BinaryIO) -> tuple[Page, tuple[str, ...]]:
    """The page that is the picture, and notes about the others. file: of `path`, a TIFF.

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
    """One after another, each followed by those inside it. Raises as `picture_page`, for the first only."""
    seen, number, following = set[int](), 0, 0
    # Directories of their own bytes fit into the file; those that lie across one another would take for ever.
    room = file.seek(0, os.SEEK_END)
    while number == 0 or (following and following not in seen):
        try:
            directory, layout, after = read_directory(file, _OTHERS, [], following)
            offset = following or _first_offset(file, layout)
            room -= _directory_bytes(file, layout, offset)
        except BROKEN_DIRECTORY:
            if number == 0:
                raise
            return
        seen.add(offset)
        yield Page(number, NO_SUB_DIRECTORY, offset, directory)
        for sub, place in enumerate(numbers(directory, _SUB_DIRECTORIES)):
            if room < 0 or place in seen:
                return
            seen.add(place)
            try:
                inner, _, _ = read_directory(file, _OTHERS, [], place)
                room -= _directory_bytes(file, layout, place)
            except BROKEN_DIRECTORY:
                continue
            yield Page(number, sub, place, inner)
        if room < 0:
            return
        number, following = number + 1, after


def _first_offset(file: BinaryIO, layout: Layout) -> int:
    file.seek(8 if layout.big else 4)
    return layout.unpack("Q" if layout.big else "I", file)[0]


def _directory_bytes(file: BinaryIO, layout: Layout, offset: int) -> int:
    file.seek(offset)
    return layout.unpack("Q" if layout.big else "H", file)[0] * _ENTRY_BYTES[layout.big]


def _first(directory: Directory, tag: int, default: int = 0) -> int:
    return next(iter(numbers(directory, tag)), default)
