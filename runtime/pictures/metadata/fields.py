"""What a picture carries beside its pixels: EXIF, XMP, ICC and some of PNG, made to fit the enlarged picture."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeAlias

from PIL import Image

from intsr.runtime.pictures.formats.jpeg import JpegSegments
from intsr.runtime.pictures.metadata.exif import (
    BROKEN_DIRECTORY,
    EXIF_IFD,
    INTEROPERABILITY_IFD,
    LONG,
    LONG8,
    POINTERS,
    UNDEFINED,
    Directory,
    Entry,
    directory_bytes,
    numbers,
    read_directory,
    values,
)
from intsr.runtime.pictures.metadata.xmp import xmp_for_upright, xmp_with_sizes

# Names and bodies of chunks.
PngChunks: TypeAlias = tuple[tuple[bytes, bytes], ...]
EXIF_HEADER = b"Exif\0\0"
ORIENTATION = 0x0112
# Sides in pixels, in the EXIF directory and in that of interoperability.
_SIDES = ({0xA002: 0, 0xA003: 1}, {0x1001: 0, 0x1002: 1})
# Of the EXIF directory: places in pixels of the original.
_PLACES = (0x9214, 0xA214)
_CFA_PATTERN, _WIDE_TEXT = 0xA302, b"UNICODE\0"
_ROOTS = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}
# Of the first directory, what says how its file stores the pixels, which in a TIFF is there too: layout, colours,
# places and layers; where on Earth a pixel lies; what a camera's raw values mean; and what is kept apart: XMP, ICC.
_STORAGE = frozenset(
    (*range(254, 267), *range(273, 282), 284, *range(288, 294), 297, 301, *range(317, 348), 351, *range(433, 436))
) | {*range(512, 522), *range(529, 533), 559, 700, 34377, 34675, 37724}
_GRID = frozenset({33550, 33920, 33922, 34264, 34735, 34736, 34737, 42112, 42113})
_RAW = frozenset(range(50706, 52600)) - {50708, 50827}
_LEFT_OUT = _STORAGE | _GRID | _RAW | {ORIENTATION}
# What describes the picture in a TIFF's directory, beside EXIF.
_XMP, _ICC = 700, 34675
_UNDESCRIBING = _LEFT_OUT - {ORIENTATION, _XMP, _ICC}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# What a plain TIFF has; of BigTIFF's own types only a number can be said in it.
_PLAIN_KINDS = range(1, 13)
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
# As text of a PNG, in hexadecimal.
_PNG_EXIF, _PNG_XMP, _PNG_APP1 = "Raw profile type exif", "Raw profile type xmp", "Raw profile type APP1"
JPEG_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """exif: as a TIFF header and directories, in the byte order that it had; orientation taken out. icc_profile, xmp:
    as in the file. Empty where none. png_chunks: density, which others hold too; text; and those that say how PNG's
    values are meant. jpeg_segments: comment and IPTC. The last two are as their files have them, and only they do.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    png_chunks: PngChunks = ()
    jpeg_segments: JpegSegments = ()


def orientation_from_exif(exif: Image.Exif) -> int:
    """1 to 8; 1 where there is none. Raises whatever Pillow raises on broken EXIF."""
    value = exif.get(ORIENTATION, 1)
    # Some write it twice, or as a byte.
    value = value[0] if isinstance(value, tuple | bytes) and value else value
    return value if value in range(1, 9) else 1


def orientation_from_directory(directory: Directory) -> int:
    """1 to 8, of a TIFF, by its own tag or else by its XMP; 1 where there is none."""
    in_xmp = _XMP_ORIENTATION.search(values(directory, _XMP))
    value = next(iter(numbers(directory, ORIENTATION)), int(in_xmp[1]) if in_xmp else 1)
    return value if value in range(1, 9) else 1


def directory_from_tiff(file: BinaryIO, offset: int) -> tuple[Directory, tuple[str, ...]]:
    """What describes the picture at an offset of a TIFF, and notes.

    What the directory of a picture behind others does not say, the first one does.
    """
    broken: list[int] = []
    first, _, _ = read_directory(file, _UNDESCRIBING, broken)
    own, _, _ = read_directory(file, _UNDESCRIBING, broken, offset)
    return first | own, _broken_notes(broken)


def directory_from_image(image: Image.Image) -> tuple[Directory, str, tuple[str, ...]]:
    """The EXIF of a decoded image, byte by byte as it is, its byte order, `<` or `>`, and a note where some of it is
    broken.
    """
    found = image.info.get("exif") or b""
    if not found and _PNG_EXIF in image.info:
        try:
            found = _from_raw_profile(image.info[_PNG_EXIF])
        except ValueError as error:
            return {}, "<", (_broken_note(error),)
    directory, notes = exif_directory(bytes(found))
    return directory, order_of_exif(bytes(found)), notes


def adopt_raw_profile(image: Image.Image) -> None:
    """A JPEG's segment of EXIF or XMP that stands as text in a PNG, put where Pillow looks for it."""
    with suppress(ValueError):
        segment = _from_raw_profile(str(image.info.get(_PNG_APP1, "")))
        if segment.startswith(EXIF_HEADER) and _PNG_EXIF not in image.info:
            image.info.setdefault("exif", segment)
        elif segment.startswith(JPEG_XMP_HEADER):
            image.info.setdefault("xmp", segment.removeprefix(JPEG_XMP_HEADER))


def exif_directory(exif: bytes) -> tuple[Directory, tuple[str, ...]]:
    """The directories of EXIF, and a note. exif: a TIFF header and directories, with or without the name in front."""
    exif = _without_header(exif)
    return _readable_part(io.BytesIO(exif)) if exif else ({}, ())


def order_of_exif(exif: bytes) -> str:
    """`<` or `>`."""
    return _order(_without_header(exif))


def little_endian_directory(exif: bytes) -> Directory:
    """The directories of EXIF for a little-endian file.

    Values of no type hold bytes in the order of the file: of wide text and of the sensor's pattern it is known where.
    """
    directory, _ = exif_directory(exif)
    return directory if order_of_exif(exif) == "<" else _with_turned_values(directory)


def _with_turned_values(directory: Directory) -> Directory:
    made: Directory = {}
    for tag, item in directory.items():
        if isinstance(item, dict):
            made[tag] = _with_turned_values(item)
            continue
        head, pairs, rest = b"", b"", item.data
        if item.kind == UNDEFINED and item.data.startswith(_WIDE_TEXT):
            head, pairs, rest = _WIDE_TEXT, item.data[len(_WIDE_TEXT) :], b""
        elif item.kind == UNDEFINED and tag == _CFA_PATTERN:
            pairs, rest = item.data[:4], item.data[4:]
        turned = b"".join(pairs[at : at + 2][::-1] for at in range(0, len(pairs), 2))
        made[tag] = Entry(item.kind, head + turned + rest)
    return made


def _without_header(exif: bytes) -> bytes:
    while exif.startswith(EXIF_HEADER):
        exif = exif.removeprefix(EXIF_HEADER)
    return exif


def _order(head: bytes) -> str:
    return ">" if head.startswith(b"MM") else "<"


def _from_raw_profile(text: str) -> bytes:
    """Three lines, then numbers of two digits. Raises ValueError."""
    return bytes.fromhex("".join(text.split("\n")[3:]))


def _readable_part(file: BinaryIO) -> tuple[Directory, tuple[str, ...]]:
    broken: list[int] = []
    try:
        directory, _, _ = read_directory(file, _LEFT_OUT, broken)
    except BROKEN_DIRECTORY as error:
        return {}, (_broken_note(error),)
    return directory, _broken_notes(broken)


def _broken_notes(broken: Iterable[int]) -> tuple[str, ...]:
    names = ", ".join(dict.fromkeys(f"0x{tag:04X}" for tag in broken))
    return (f"EXIF is broken in part: dropped {names}",) if names else ()


def _broken_note(error: Exception) -> str:
    return f"EXIF is broken and was dropped ({error})"


def xmp_from_image(image: Image.Image) -> bytes:
    """Empty where there is none that can be told."""
    found = next((image.info[key] for key in _XMP_KEYS if key in image.info), b"")
    if not found and _PNG_XMP in image.info:
        with suppress(ValueError):
            found = _from_raw_profile(image.info[_PNG_XMP])
    return found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else b""


def upright_metadata(
    directory: Directory,
    icc_profile: bytes,
    xmp: bytes,
    size: tuple[int, int],
    upscale_factor: int = 1,
    order: str = "<",
) -> ImageMetadata:
    """size: (width, height) when upright; sizes in EXIF and XMP become those of the enlarged picture. order: the byte
    order of the EXIF. The orientation is taken out of all of it, and so are places in pixels of the original.
    """
    width_px, height_px = (side_px * upscale_factor for side_px in size)
    described = _described(directory.items())
    details = described.get(EXIF_IFD)
    if isinstance(details, dict):
        described[EXIF_IFD] = {tag: item for tag, item in details.items() if tag not in _PLACES}
    exif = _exif_bytes(_with_sizes(described, width_px, height_px), order)
    return ImageMetadata(exif, icc_profile, xmp_with_sizes(xmp_for_upright(xmp), width_px, height_px))


def metadata_for_size(metadata: ImageMetadata, width_px: int, height_px: int) -> ImageMetadata:
    """The same, with the sizes that its EXIF and XMP mention set to these. What is broken in EXIF is dropped."""
    metadata = replace(metadata, xmp=xmp_with_sizes(metadata.xmp, width_px, height_px))
    directory, notes = exif_directory(metadata.exif)
    changed = _with_sizes(directory, width_px, height_px)
    if changed == directory and not notes:
        return metadata
    return replace(metadata, exif=_exif_bytes(_described(changed.items()), order_of_exif(metadata.exif)))


def _described(items: Iterable[tuple[int, Entry | Directory]], depth: int = 0) -> Directory:
    """What a plain TIFF can say, without what belongs to the file that it was in."""
    kept: Directory = {}
    for tag, item in items:
        if isinstance(item, dict):
            if inner := _described(item.items(), depth + 1):
                kept[tag] = inner
        # A pointer without its directory leads nowhere.
        elif tag not in POINTERS and not (depth == 0 and tag in _LEFT_OUT) and (plain := _plain(item)):
            kept[tag] = plain
    return kept


def _plain(entry: Entry) -> Entry | None:
    if entry.kind == LONG8 and all(number < 1 << 32 for number in entry.numbers):
        return Entry(LONG, struct.pack(f"<{entry.count}I", *entry.numbers))
    return entry if entry.kind in _PLAIN_KINDS and entry.data else None


def _with_sizes(directory: Directory, width_px: int, height_px: int) -> Directory:
    """The sizes that are mentioned set to these."""
    details = directory.get(EXIF_IFD)
    if not isinstance(details, dict):
        return directory
    sides = (width_px, height_px)
    made = _with_sides(details, _SIDES[0], sides)
    inner = details.get(INTEROPERABILITY_IFD)
    if isinstance(inner, dict):
        made = made | {INTEROPERABILITY_IFD: _with_sides(inner, _SIDES[1], sides)}
    return directory | {EXIF_IFD: made}


def _with_sides(directory: Directory, tags: dict[int, int], sides: tuple[int, int]) -> Directory:
    """tags: to which of the sides. Where a number is right its type stays."""
    wrong = {tag: at for tag, at in tags.items() if tag in directory and numbers(directory, tag) != (sides[at],)}
    return directory | {tag: Entry(LONG, struct.pack("<I", sides[at])) for tag, at in wrong.items()}


def _exif_bytes(directory: Directory, order: str = "<") -> bytes:
    if not directory:
        return b""
    root = _ROOTS[order]
    return EXIF_HEADER + root + directory_bytes(directory, len(root), False, order)
