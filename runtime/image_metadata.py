"""What a picture carries beside its pixels: EXIF, XMP, ICC and some of PNG, made to fit the enlarged picture."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL import Image

from intsr.runtime.image_directory import (
    BROKEN_DIRECTORY,
    EXIF_IFD,
    LONG,
    LONG8,
    POINTERS,
    Directory,
    Entry,
    directory_bytes,
    numbers,
    read_directory,
)

# Names and bodies of chunks.
PngChunks: TypeAlias = tuple[tuple[bytes, bytes], ...]
EXIF_HEADER = b"Exif\0\0"
_ORIENTATION = 0x0112
_WIDTHS, _HEIGHTS = 0xA002, 0xA003
_ROOT_BYTES = b"II*\0\x08\0\0\0"
# Of the first directory, what says how its file stores the pixels, which in a TIFF is there too: layout, colours,
# places and layers; where on Earth a pixel lies; what a camera's raw values mean; and what is kept apart: XMP, ICC.
_STORAGE = frozenset(
    (*range(254, 267), *range(273, 282), 284, *range(288, 294), 297, 301, *range(317, 348), 351, *range(433, 436))
) | {*range(512, 522), *range(529, 533), 559, 700, 34377, 34675, 37724}
_GRID = frozenset({33550, 33920, 33922, 34264, 34735, 34736, 34737, 42112, 42113})
_RAW = frozenset(range(50706, 52600)) - {50708, 50827}
_LEFT_OUT = _STORAGE | _GRID | _RAW | {_ORIENTATION}
# What a plain TIFF has; of BigTIFF's own types only a number can be said in it.
_PLAIN_KINDS = range(1, 13)
# As Pillow takes it out of the pictures that it turns.
_XMP_ORIENTATION = re.compile(rb"\s?tiff:Orientation=\"[0-9]\"|<tiff:Orientation>[0-9]</tiff:Orientation>")
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
_PNG_EXIF = "Raw profile type exif"


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """exif: as a TIFF header and directories, orientation taken out. icc_profile, xmp: as in the file. Empty where
    none. png_chunks: those that say how PNG's values are meant; only PNG holds them.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    png_chunks: PngChunks = ()


def orientation_from_exif(exif: Image.Exif) -> int:
    """1 to 8; 1 where there is none. Raises whatever Pillow raises on broken EXIF."""
    value = exif.get(_ORIENTATION, 1)
    # Some write it twice, or as a byte.
    value = value[0] if isinstance(value, tuple | bytes) and value else value
    return value if value in range(1, 9) else 1


def orientation_from_directory(directory: Directory) -> int:
    """1 to 8; 1 where there is none."""
    value = next(iter(numbers(directory, _ORIENTATION)), 1)
    return value if value in range(1, 9) else 1


def directory_from_image(path: Path, image: Image.Image) -> tuple[Directory, tuple[str, ...]]:
    """The EXIF of a decoded image, byte by byte as it is, and a note where some of it is broken. path: its file."""
    if image.format == "TIFF":
        with path.open("rb") as file:
            return _readable_part(file)
    found = image.info.get("exif") or b""
    if not found and _PNG_EXIF in image.info:
        try:
            # Three lines, then numbers of two digits.
            found = bytes.fromhex("".join(image.info[_PNG_EXIF].split("\n")[3:]))
        except ValueError as error:
            return {}, (_broken_note(error),)
    return exif_directory(bytes(found))


def exif_directory(exif: bytes) -> tuple[Directory, tuple[str, ...]]:
    """As `directory_from_image`, of the bytes: a TIFF header and directories, with or without the name in front."""
    while exif.startswith(EXIF_HEADER):
        exif = exif.removeprefix(EXIF_HEADER)
    return _readable_part(io.BytesIO(exif)) if exif else ({}, ())


def _readable_part(file: BinaryIO) -> tuple[Directory, tuple[str, ...]]:
    broken: list[int] = []
    try:
        directory, _, _ = read_directory(file, _LEFT_OUT, broken)
    except BROKEN_DIRECTORY as error:
        return {}, (_broken_note(error),)
    names = ", ".join(f"0x{tag:04X}" for tag in broken)
    return directory, (f"EXIF is broken in part: dropped {names}",) if broken else ()


def _broken_note(error: Exception) -> str:
    return f"EXIF is broken and was dropped ({error})"


def xmp_from_image(image: Image.Image) -> bytes:
    """Empty where there is none that can be told."""
    found = next((image.info[key] for key in _XMP_KEYS if key in image.info), b"")
    return found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else b""


def upright_metadata(
    directory: Directory, icc_profile: bytes, xmp: bytes, size: tuple[int, int], upscale_factor: int = 1
) -> ImageMetadata:
    """size: (width, height) when upright; sizes in EXIF become those of the enlarged picture. The orientation is
    taken out of all of it.
    """
    width_px, height_px = (side_px * upscale_factor for side_px in size)
    exif = _exif_bytes(_with_sizes(_described(directory.items()), width_px, height_px))
    return ImageMetadata(exif, icc_profile, _XMP_ORIENTATION.sub(b"", xmp))


def metadata_for_size(metadata: ImageMetadata, width_px: int, height_px: int) -> ImageMetadata:
    """The same, with the sizes that its EXIF mentions set to these. What is broken in it is dropped."""
    directory, notes = exif_directory(metadata.exif)
    changed = _with_sizes(directory, width_px, height_px)
    if changed == directory and not notes:
        return metadata
    return replace(metadata, exif=_exif_bytes(_described(changed.items())))


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
    sizes = {_WIDTHS: width_px, _HEIGHTS: height_px}
    wrong = {tag: side_px for tag, side_px in sizes.items() if tag in details and numbers(details, tag) != (side_px,)}
    changed = {tag: Entry(LONG, struct.pack("<I", side_px)) for tag, side_px in wrong.items()}
    return directory | {EXIF_IFD: details | changed} if changed else directory


def _exif_bytes(directory: Directory) -> bytes:
    if not directory:
        return b""
    return EXIF_HEADER + _ROOT_BYTES + directory_bytes(directory, len(_ROOT_BYTES), big=False)
