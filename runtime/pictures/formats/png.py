"""PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intsr.runtime.pictures.damage import scan_png
from intsr.runtime.pictures.formats.base import PictureFormat, keep_flags, save_by_vips
from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureHeader
from intsr.runtime.pictures.pillow import PictureFile, decoded_by_pillow


class _Png(PictureFormat):
    name = "PNG"
    suffixes = (".png",)
    place = 0
    holds_alpha = holds_16_bits = True
    # libpng, which most programs read it with, refuses longer sides.
    max_side_px = 1_000_000

    def recognizes(self, head: bytes) -> bool:
        return head.startswith(b"\x89PNG\r\n\x1a\n")

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        scan = scan_png(file)
        file.patches = scan.patches
        late, patches = scan.has_late_metadata, scan.patches
        return self.header_by_pillow(
            path, file, notes=lambda image: scan.notes, has_late_metadata=late, details=patches
        )

    def decode(self, header: PictureHeader) -> LoadedImage:
        return decoded_by_pillow(header, patches=header.details)

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        # All filters tried on every row. libvips' zlib takes half the time of the common one for about the same size.
        save_by_vips(image, path, "pngsave_target", compression=4, filter="all", keep=keep_flags(metadata))

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        return tail.endswith(b"IEND\xaeB`\x82")


FORMAT = _Png()
