"""Small damage that costs nothing of the picture: found, and mended as it is read.

Source: PNG Specification, Third Edition, 5.4 and 13.1; ISO/IEC 10918-1, B.2 and G.1.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from intsr.runtime.pictures.pillow import PictureFile, opened

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that hold EXIF, XMP or text.
_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
# The chunk of colours as code points of ITU-T H.273, and those of sRGB.
_CODE_POINTS, _SRGB = b"cICP", bytes((1, 13, 0, 1))
# Of a chunk that the picture can be read without.
_ANCILLARY = 0x20
# A chunk that no reader knows.
_UNKNOWN = b"skIp"
_PIECE_BYTES = 1 << 20
_END = b"\xff\xd9"
# Behind a whole picture they change nothing. Where some of it is missing they become its pixels, and no bit of one is
# that of the other. A byte of 255 would begin a marker.
_NOISE = bytes((at * 73 + 90) % 254 + 1 for at in range(1000))
_OTHER_NOISE = bytes(255 - value for value in _NOISE)
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
_START_OF_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
_COEFFICIENTS = 64


@dataclass(frozen=True, slots=True)
class PngScan:
    """What the chunks of a PNG say that Pillow does not."""

    # What to read at which offset, so that chunks with a wrong checksum are passed over: only those that the picture
    # can be read without.
    patches: dict[int, bytes]
    # For people.
    notes: tuple[str, ...]
    # Chunks of EXIF or text follow the pixels.
    has_late_metadata: bool


def scan_png(file: BinaryIO) -> PngScan:
    """Go through the chunks of a PNG. Raises OSError."""
    patches: dict[int, bytes] = {}
    names, seen_pixels, has_late_metadata, is_other_than_srgb = list[str](), False, False, False
    file.seek(len(PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, name, start = int.from_bytes(head[:4], "big"), head[4:], file.tell()
        seen_pixels = seen_pixels or name == b"IDAT"
        has_late_metadata = has_late_metadata or (seen_pixels and name in _METADATA)
        if name[0] & _ANCILLARY and name.isalpha():
            found, other = zlib.crc32(name), zlib.crc32(_UNKNOWN)
            for at in range(0, length, _PIECE_BYTES):
                if not (piece := file.read(min(_PIECE_BYTES, length - at))):
                    break
                found, other = zlib.crc32(piece, found), zlib.crc32(piece, other)
                is_other_than_srgb = is_other_than_srgb or (name == _CODE_POINTS and piece != _SRGB)
            checksum = file.read(4)
            if len(checksum) == 4 and checksum != found.to_bytes(4, "big"):
                patches |= {start - 4: _UNKNOWN, start + length: other.to_bytes(4, "big")}
                names.append(name.decode("ascii"))
        file.seek(start + length + 4)
    listed = ", ".join(dict.fromkeys(names))
    notes = [f"parts of the PNG with a wrong checksum were left out: {listed}"] if names else []
    if is_other_than_srgb:
        notes.append("cICP of the PNG was dropped: its colours will be taken for sRGB")
    return PngScan(patches, tuple(notes), has_late_metadata)


def tail_of_jpeg(path: Path) -> bytes:
    """Return what a JPEG that ends early lacks, if its picture is whole; else nothing. Raises OSError."""
    data = path.read_bytes()
    # The first half of a mark, or of what stands for a byte of 255.
    stuffing = b"\0" if data.endswith(b"\xff") else b""
    if not _scans_are_all_there(data):
        return b""
    try:
        same = len({_decoded(path, stuffing + noise + _END) for noise in (_NOISE, _OTHER_NOISE)}) == 1
    except OSError:
        return b""
    return stuffing + _END if same else b""


def _decoded(path: Path, tail: bytes) -> int:
    """Return a checksum of the pixels of the file with this tail."""
    with PictureFile(path, tail=tail) as file, opened(file, "JPEG") as image:
        image.load()
        return zlib.crc32(Image.Image.tobytes(image))


def _scans_are_all_there(data: bytes) -> bool:
    """Tell whether the scans of a JPEG give every bit of every coefficient of every component."""
    at, lowest = 2, dict[tuple[int, int], int]()
    components: list[int] = []
    while found := _MARKER.search(data, at):
        marker, body = data[found.start() + 1], data[found.end() + 2 : found.end() + 1000]
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        if marker in _FRAMES and len(body) > 5:
            components = list(body[6 : 6 + 3 * body[5] : 3])
        elif marker == _START_OF_SCAN and body and len(body) > 3 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            for component in body[1 : 1 + 2 * body[0] : 2]:
                lowest |= {(component, at): bits & 15 for at in range(first, last + 1)}
        at = found.end() + length
    every = [(component, at) for component in components for at in range(_COEFFICIENTS)]
    return bool(every) and all(lowest.get(item) == 0 for item in every)
