"""Metadata in front of the pixels of PNG and JPEG, byte by byte as it is: libvips would rewrite EXIF.

The encoder starts late in the file: room is left for the whole new beginning, less what the encoder writes as its own
beginning, which is then overwritten. Nothing is copied, however large the picture is.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from intsr.runtime.pictures.formats.jpeg import JPEG_SEGMENT_BYTES
from intsr.runtime.pictures.formats.png import DENSITY, chunks_beside_profile, density_of_chunks
from intsr.runtime.pictures.metadata.fields import EXIF_HEADER, JPEG_XMP_HEADER, ImageMetadata
from intsr.runtime.pictures.metadata.resolution import jfif_from_density
from intsr.runtime.pictures.row_pipe import PNG_SIGNATURE, png_chunk

# Signature and IHDR of PNG; SOI of JPEG: what stays in front of everything.
_PNG_FIRST_BYTES, _JPEG_FIRST_BYTES = len(PNG_SIGNATURE) + 25, 2
_JPEG_TABLES = b"\xff\xdb"
# Square pixels, of no particular size. The PNG chunk is as long as the one that libvips writes with a size made up.
_SQUARE_PNG = png_chunk(b"pHYs", struct.pack(">IIB", 1, 1, 0))
_SQUARE_JPEG = (0, 1, 1)
_JPEG_ICC_HEADER = b"ICC_PROFILE\0"
_APP0, _APP1, _APP2 = 0xE0, 0xE1, 0xE2


@dataclass(frozen=True, slots=True)
class Beginning:
    """kept_bytes: of what the encoder writes, how many stay in front. inserted: what follows them. replaced_bytes:
    how many of the encoder's bytes behind `kept_bytes` go away.
    """

    kept_bytes: int
    inserted: bytes
    replaced_bytes: int

    def write(self, descriptor: int, encode: Callable[[int], None]) -> None:
        """descriptor: an empty file. encode: given the descriptor, writes all of its own from the current offset."""
        start = len(self.inserted) - self.replaced_bytes
        if start < 0:
            raise ValueError(f"the encoder begins with {-start} bytes too many")
        os.lseek(descriptor, start, os.SEEK_SET)
        encode(descriptor)
        first = os.pread(descriptor, self.kept_bytes, start)
        _pwrite_all(descriptor, first + self.inserted, 0)


def _pwrite_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def png_beginning(sample: bytes, metadata: ImageMetadata) -> Beginning:
    """sample: any file of this encoder with these settings."""
    found = chunks_beside_profile(metadata.png_chunks, metadata.icc_profile)
    chunks = [] if any(name == DENSITY for name, _ in found) else [_SQUARE_PNG]
    # In front of everything: what says how values are meant must precede a palette and the pixels.
    chunks += [png_chunk(name, body) for name, body in found]
    if metadata.icc_profile:
        chunks.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc_profile)))
    if metadata.exif:
        chunks.append(png_chunk(b"eXIf", metadata.exif.removeprefix(EXIF_HEADER)))
    if metadata.xmp:
        chunks.append(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    return Beginning(_PNG_FIRST_BYTES, b"".join(chunks), sample.index(b"IDAT") - 4 - _PNG_FIRST_BYTES)


def jpeg_beginning(sample: bytes, metadata: ImageMetadata) -> Beginning:
    """sample: any file of this encoder with these settings. Too long EXIF or XMP is left out: `notes_for_output`."""
    density = density_of_chunks(metadata.png_chunks)
    said = (jfif_from_density(density) if density else None) or _SQUARE_JPEG
    segments = [_jpeg_segment(_APP0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0101, *said, 0, 0))]
    for header, data in ((EXIF_HEADER, metadata.exif), (JPEG_XMP_HEADER, metadata.xmp)):
        body = header + data.removeprefix(header)
        if data and len(body) <= JPEG_SEGMENT_BYTES:
            segments.append(_jpeg_segment(_APP1, body))
    # Numbered parts; a profile is far below the 255 that there can be.
    step = JPEG_SEGMENT_BYTES - len(_JPEG_ICC_HEADER) - 2
    parts = [metadata.icc_profile[at : at + step] for at in range(0, len(metadata.icc_profile), step)]
    for number, part in enumerate(parts, 1):
        segments.append(_jpeg_segment(_APP2, _JPEG_ICC_HEADER + bytes((number, len(parts))) + part))
    segments += [_jpeg_segment(marker, body) for marker, body in metadata.jpeg_segments]
    return Beginning(_JPEG_FIRST_BYTES, b"".join(segments), sample.index(_JPEG_TABLES) - _JPEG_FIRST_BYTES)


def _jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
