"""EXIF and XMP of the original made into those of the new file: the same for every format.

Orientation and thumbnail go, sides become those of the file. libvips, which writes EXIF, adds none of that, and none
at all into a TIFF.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import ImageFileDirectory_v2

EXIF_HEADER = b"Exif\0\0"
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
_WIDTH, _HEIGHT = 0xA002, 0xA003
# Of EXIF's and GPS's directories all but places in pixels of the original, and a pointer to a directory that says
# nothing of pictures.
_INNER = frozenset(range(65536)) - {0x9214, 0xA214, 0xA005}
# BigTIFF's LONG8, and IFD, as what EXIF has.
_LONG = 4
_PLAIN_KINDS = {13: _LONG, 16: _LONG}
# Of a TIFF's directory, what describes the picture and not its file: description, make, model, resolution,
# software, date, artist, host, ratings, copyright, Windows' title to subject.
_DESCRIBING = frozenset({270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096)})
_ROOTS = {False: b"II*\0\x08\0\0\0", True: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"}
# What Pillow raises on broken directories.
_BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, OverflowError, ArithmeticError, struct.error)
# Nothing here looks far for its end: XMP comes from strangers.
_NOT_IN_NAME = rb"(?<![\w:.-])"
_XMP_ORIENTATION = re.compile(
    rb"\s?" + _NOT_IN_NAME + rb"tiff:Orientation\s*=\s*(?:\"[^\"<]*\"|'[^'<]*')"
    rb"|<tiff:Orientation\s*>[^<]*</tiff:Orientation\s*>"
)


@dataclass(frozen=True, slots=True)
class Tags:
    """The values of a directory by their tags. Text is bytes, in whatever encoding it is."""

    values: dict[int, Any] = field(default_factory=dict)
    # TIFF's numbers of their types.
    kinds: dict[int, int] = field(default_factory=dict)
    # The directories of EXIF and of GPS by the tag that points to them.
    inner: dict[int, Tags] = field(default_factory=dict)

    def __or__(self, other: Tags) -> Tags:
        """Both; of a tag that both have, the other's."""
        return Tags(self.values | other.values, self.kinds | other.kinds, self.inner | other.inner)


def tags_from_directory(file: BinaryIO, offset: int = 0) -> Tags:
    """Read a directory of a TIFF or of a block of EXIF. offset: 0 for the first. What is broken is left out."""
    found = Tags()
    with warnings.catch_warnings(), suppress(*_BROKEN):
        # Pillow warns of what it leaves out.
        warnings.simplefilter("ignore", UserWarning)
        file.seek(0)
        head = file.read(16)
        order, is_big = head[:2], head[2:4] in (b"+\0", b"\0+")
        # Pillow takes a big-endian BigTIFF for none, unless it is told the order apart.
        head = _ROOTS[is_big][:4] + head[4 : 16 if is_big else 8]
        found = _loaded(file, ImageFileDirectory_v2(head, order), offset)
        for pointer in (EXIF_IFD, GPS_IFD):
            if place := found.values.pop(pointer, 0):
                found.inner[pointer] = _loaded(file, ImageFileDirectory_v2(head, order, pointer), place)
    return found


def _loaded(file: BinaryIO, ifd: ImageFileDirectory_v2, offset: int) -> Tags:
    file.seek(offset or ifd.next)
    ifd.load(file)
    made = Tags()
    for tag in ifd:
        with suppress(*_BROKEN):
            value = ifd[tag]
            # Pillow decodes text so that every byte comes back, and encodes it so that only ASCII does.
            made.values[tag] = value.encode("latin-1") if isinstance(value, str) else value
            made.kinds[tag] = _PLAIN_KINDS.get(ifd.tagtype[tag], ifd.tagtype[tag])
    return made


def _ifd(tags: Tags, wanted: Container[int], big: bool, order: bytes) -> ImageFileDirectory_v2:
    """Return a directory of the tags that are wanted. One that cannot be written costs itself alone."""
    made = ImageFileDirectory_v2(_ROOTS[big], order)
    for tag, value in tags.values.items():
        trial = ImageFileDirectory_v2(_ROOTS[big], order)
        with suppress(*_BROKEN):
            if tag in wanted:
                trial.tagtype[tag] = made.tagtype[tag] = tags.kinds[tag]
                trial[tag] = value
                trial.tobytes()
                made[tag] = value
    return made


def _ifds(tags: Tags, size: tuple[int, int], start: int, big: bool, order: bytes) -> tuple[bytes, int]:
    """Return what describes the picture, as directories for the offset `start` of a file, and where the first is.

    Empty where there is nothing. size: (width, height), where sides are named. order: `II` or `MM`.
    """
    data, first = b"", _ifd(tags, _DESCRIBING, big, order)
    for pointer, found in tags.inner.items():
        inner = _ifd(found, _INNER, big, order)
        for tag, side_px in zip((_WIDTH, _HEIGHT), size, strict=True):
            if tag in inner:
                inner.tagtype[tag] = _LONG
                inner[tag] = side_px
        if len(inner):
            first[pointer] = start + len(data)
            data += inner.tobytes(start + len(data))
            data += b"\0" * (len(data) % 2)
    place = start + len(data)
    return (data + first.tobytes(place), place) if len(first) else (b"", 0)


def exif_from_tags(tags: Tags, size: tuple[int, int], order: bytes = b"II") -> bytes:
    """Return a block of EXIF of what describes the picture; empty where there is nothing. order: `II` or `MM`."""
    head = struct.Struct("<2sHI" if order == b"II" else ">2sHI")
    data, place = _ifds(tags, size, head.size, big=False, order=order)
    return EXIF_HEADER + head.pack(order, 42, place) + data if data else b""


def exif_for_size(exif: bytes, size: tuple[int, int]) -> bytes:
    """Return the block, in its byte order, without orientation and thumbnail, with these sides."""
    exif = exif.removeprefix(EXIF_HEADER)
    order = b"MM" if exif.startswith(b"MM") else b"II"
    return exif_from_tags(tags_from_directory(BytesIO(exif)), size, order)


def append_exif(path: Path, exif: bytes, size: tuple[int, int]) -> None:
    """Have the directory of a little-endian TIFF say what the EXIF says too.

    A directory may lie anywhere: the old one stays where it is, unused, and one with the entries of both goes to the
    end. Raises OSError, struct.error.
    """
    tags = tags_from_directory(BytesIO(exif.removeprefix(EXIF_HEADER)))
    with path.open("r+b") as file:
        big = file.read(4) == _ROOTS[True][:4]
        # Where the file says where its first directory is, and how; how many entries that has, and each of how many
        # bytes.
        root, offset_code, count_code, entry_bytes = (8, "<Q", "<Q", 20) if big else (4, "<I", "<H", 12)
        start = file.seek(0, os.SEEK_END)
        start += file.write(b"\0" * (start % 2))
        data, place = _ifds(tags, size, start, big, b"II")
        if not data:
            return
        file.write(data + b"\0" * (len(data) % 2))
        file.seek(root)
        (first,) = struct.unpack(offset_code, file.read(struct.calcsize(offset_code)))
        entries: dict[int, bytes] = {}
        for offset in (place, first):
            file.seek(offset)
            (count,) = struct.unpack(count_code, file.read(struct.calcsize(count_code)))
            # They point to absolute places, so that they may be copied as they are.
            found = [file.read(entry_bytes) for _ in range(count)]
            entries |= {int.from_bytes(entry[:2], "little"): entry for entry in found}
        place = file.seek(0, os.SEEK_END)
        file.write(struct.pack(count_code, len(entries)))
        file.write(b"".join(entries[tag] for tag in sorted(entries)) + bytes(8))
        file.seek(root)
        file.write(struct.pack(offset_code, place))


def _sides(names: bytes) -> re.Pattern[bytes]:
    """Return a pattern for these properties, as attributes and as elements; its first group is all but the number."""
    attribute, element = _NOT_IN_NAME + b"(?:" + names + rb")\s*=\s*[\"']\s*", b"<(?:" + names + rb")\s*>\s*"
    return re.compile(b"(" + attribute + b"|" + element + rb")\d+(?=\s*[\"'<])")


_XMP_SIDES = _sides(b"exif:PixelXDimension|tiff:ImageWidth"), _sides(b"exif:PixelYDimension|tiff:ImageLength")


def xmp_for_size(xmp: bytes, size: tuple[int, int]) -> bytes:
    """Return the XMP without its orientation, which has been applied, and with these sides where it names some."""
    xmp = _XMP_ORIENTATION.sub(b"", xmp)
    for pattern, side_px in zip(_XMP_SIDES, size, strict=True):
        xmp = pattern.sub(rb"\g<1>%d" % side_px, xmp)
    return xmp
