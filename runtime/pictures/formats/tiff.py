"""Metadata appended to a TIFF that has its pixels, and the check of what was written.

libvips writes no EXIF into TIFF, and Pillow none into BigTIFF. A directory may lie anywhere, so the old one stays
where it is, unused, and a new one with all entries of both goes to the end.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from intsr.runtime.pictures.formats.png import density_of_chunks
from intsr.runtime.pictures.metadata.exif import BYTE, UNDEFINED, Entry, directory_bytes, numbers, read_directory
from intsr.runtime.pictures.metadata.fields import ImageMetadata, little_endian_directory
from intsr.runtime.pictures.metadata.resolution import RESOLUTION_TAGS, resolution_from_density

WIDTH, HEIGHT, SAMPLES, BITS = 256, 257, 277, 258
COMPRESSION, PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT = 259, 262, 338, 339
PLANES, TILE_WIDTH, INK_SET, SUBSAMPLING = 284, 322, 332, 530
STRIP_ROWS, TILE_ROWS = 278, 323
# All that says what the pixels are.
PIXEL_TAGS = frozenset({WIDTH, HEIGHT, SAMPLES, BITS, COMPRESSION, PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT}) | {
    *(PLANES, TILE_WIDTH, INK_SET, SUBSAMPLING, STRIP_ROWS, TILE_ROWS),
}
_STRIP_OFFSETS, _STRIP_BYTES = 273, 279
XMP, ICC = 700, 34675


def append_directory(path: Path, metadata: ImageMetadata) -> None:
    """path: a whole little-endian TIFF without metadata. Raises OSError, ValueError, struct.error."""
    with path.open("r+b") as file:
        directory, layout, _ = read_directory(file)
        if layout.order != "<":
            raise ValueError("a big-endian TIFF")
        # What libvips says of the size in centimetres: it does not know.
        described = {tag: entry for tag, entry in directory.items() if tag not in RESOLUTION_TAGS}
        if density := density_of_chunks(metadata.png_chunks):
            described |= resolution_from_density(density)
        # What is broken was named by `notes_for_output`; it must not cost the picture.
        described |= little_endian_directory(metadata.exif)
        if metadata.xmp:
            described[XMP] = Entry(BYTE, metadata.xmp)
        if metadata.icc_profile:
            described[ICC] = Entry(UNDEFINED, metadata.icc_profile)
        # The pixels' own entries hold whatever the EXIF says.
        described |= {tag: entry for tag, entry in directory.items() if tag not in RESOLUTION_TAGS}
        start = file.seek(0, os.SEEK_END)
        start += file.write(b"\0" * (start % 2))
        file.write(directory_bytes(described, start, layout.big))
        file.seek(8 if layout.big else 4)
        file.write(struct.pack("<Q" if layout.big else "<I", start))


def check_tiff(path: Path, size: tuple[int, int], channels: int, bits: int) -> None:
    """Raises ValueError where the file is not a picture of (width, height) = size, or its strips are not there."""
    with path.open("rb") as file:
        directory, _, _ = read_directory(file)
        end = file.seek(0, os.SEEK_END)
    found = {tag: numbers(directory, tag) for tag in (WIDTH, HEIGHT, SAMPLES, BITS, _STRIP_OFFSETS, _STRIP_BYTES)}
    said = (*found[WIDTH], *found[HEIGHT], *(found[SAMPLES] or (1,)), *set(found[BITS]))
    if said != (*size, channels, bits):
        raise ValueError(f"the written file has {said}, not {(*size, channels, bits)}")
    strips = zip(found[_STRIP_OFFSETS], found[_STRIP_BYTES], strict=True)
    if not all(0 < size_bytes <= end - offset for offset, size_bytes in strips):
        raise ValueError("the written file ends early")
