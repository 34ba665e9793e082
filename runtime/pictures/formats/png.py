"""PNG, also one whose chunks beside the picture have wrong checksums: it costs those chunks alone.

Source: PNG Specification, Third Edition, 5.4 and 13.1.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from intsr.runtime.pictures.picture import ImageMetadata, PictureFile, PictureHeader
from intsr.runtime.pictures.pillow import PillowFormat
from intsr.runtime.pictures.vips import save_by_vips

_SIGNATURE_BYTES = 8
# Chunks that hold EXIF, XMP or text.
_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
# The chunk of colours as code points of ITU-T H.273, and those of sRGB.
_CODE_POINTS, _SRGB = b"cICP", bytes((1, 13, 0, 1))
# Of a chunk that the picture can be read without.
_ANCILLARY = 0x20
# A chunk that no reader knows.
_UNKNOWN = b"skIp"
_PIECE_BYTES = 1 << 20


class _Png(PillowFormat):
    name = "PNG"
    suffixes = (".png",)
    head = rb"\x89PNG\r\n\x1a\n"
    place = 0
    holds_alpha = holds_16_bits = True
    # libpng, which most programs read it with, refuses longer sides.
    max_side_px = 1_000_000

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        file.patches, notes, is_late = _scan(file)
        header = self.header_by_pillow(path, file, is_late)
        return replace(header, notes=(*notes, *header.notes), details=file.patches)

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        # All filters tried on every row. libvips' zlib takes half the time of the common one for about the same size.
        save_by_vips(image, path, "pngsave_target", metadata, compression=4, filter="all")

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        return tail.endswith(b"IEND\xaeB`\x82")


def _scan(file: PictureFile) -> tuple[dict[int, bytes], list[str], bool]:
    """Go through the chunks for what Pillow does not say. Raises OSError.

    Returns what to read at which offset, so that chunks with a wrong checksum are passed over, only those that the
    picture can be read without; notes for people; and whether chunks of EXIF or text follow the pixels.
    """
    patches: dict[int, bytes] = {}
    names, seen_pixels, has_late_metadata, is_other_than_srgb = list[str](), False, False, False
    file.seek(_SIGNATURE_BYTES)
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
    return patches, notes, has_late_metadata


FORMAT = _Png()
