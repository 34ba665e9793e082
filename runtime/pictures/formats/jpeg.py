"""JPEG, and the first picture of a JPEG of several."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureFile, PictureHeader
from intsr.runtime.pictures.pillow import PillowFormat, opened
from intsr.runtime.pictures.vips import save_by_vips

# The list of pictures in a JPEG of several.
_MP_ENTRIES = 0xB002
_END = b"\xff\xd9"
# Behind a whole picture they change nothing. Where some of it is missing they become its pixels, and no bit of one is
# that of the other. A byte of 255 would begin a marker.
_NOISE = bytes((at * 73 + 90) % 254 + 1 for at in range(1000))
_OTHER_NOISE = bytes(255 - value for value in _NOISE)
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
_START_OF_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
_COEFFICIENTS = 64


class _Jpeg(PillowFormat):
    name = "JPEG"
    suffixes = (".jpg", ".jpeg")
    head = rb"\xff\xd8\xff"
    place = 1
    max_side_px = 65500
    default_quality = 95
    keeps = ("EXIF", "XMP", "ICC", "IPTC")
    # One segment: its length has 16 bits and counts itself, and XMP's name stands in front.
    max_xmp_bytes = 65533 - 29

    def notes_of_image(self, image: Image.Image) -> tuple[str, ...]:
        # Smaller pictures of the same view do not count. Source: CIPA DC-007, 5.2.3.3.
        entries = (getattr(image, "mpinfo", None) or {}).get(_MP_ENTRIES, ())
        kinds = [str(entry.get("Attribute", {}).get("MPType")) for entry in entries]
        views = sum(not kind.startswith("Large Thumbnail") for kind in kinds)
        return (f"only the first of {views} pictures in the file was read",) if views > 1 else ()

    def decode(self, header: PictureHeader) -> LoadedImage:
        try:
            return self.decoded_by_pillow(header)
        except OSError:
            if not (tail := _missing_tail(header.path)):
                raise
        loaded = self.decoded_by_pillow(header, tail)
        return replace(loaded, notes=(*loaded.notes, "the end mark of the JPEG is missing; the picture is whole"))

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        save_by_vips(image, path, "jpegsave_target", metadata, Q=quality, subsample_mode="off")

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        return tail.endswith(_END)


def _missing_tail(path: Path) -> bytes:
    """Return what a JPEG that ends early lacks, if its picture is whole; else nothing.

    Raises OSError. Source: ISO/IEC 10918-1, B.2 and G.1.
    """
    data = path.read_bytes()
    # The first half of a mark, or of what stands for a byte of 255.
    stuffing = b"\0" if data.endswith(b"\xff") else b""
    if not _scans_are_all_there(data):
        return b""
    try:
        same = _checksum(path, stuffing + _NOISE + _END) == _checksum(path, stuffing + _OTHER_NOISE + _END)
    except OSError:
        return b""
    return stuffing + _END if same else b""


def _checksum(path: Path, tail: bytes) -> int:
    """Of the pixels of the file with this tail."""
    with PictureFile(path, tail=tail) as file, opened(file, "JPEG") as image:
        return zlib.crc32(image.tobytes())


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


FORMAT = _Jpeg()
