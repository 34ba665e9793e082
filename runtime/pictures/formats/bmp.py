"""BMP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureHeader
from intsr.runtime.pictures.pillow import PillowFormat, save_by_pillow


class _Bmp(PillowFormat):
    name = "BMP"
    suffixes = (".bmp",)
    head = rb"BM"
    place = 5
    # Its header counts bytes in 32 bits.
    max_bytes = 2**32 - 2**16
    encoder_bytes = 8
    keeps = ()

    def decode(self, header: PictureHeader) -> LoadedImage:
        loaded = self.decoded_by_pillow(header)
        if loaded.alpha is None or loaded.alpha.any():
            return loaded
        # Some programs announce transparency, and leave it empty.
        note = "its transparency is 0 everywhere, and was taken for none"
        return replace(loaded, alpha=None, notes=(*loaded.notes, note))

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        save_by_pillow(image, path, self.name, dpi=metadata.dpi)

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        return int.from_bytes(head[2:6], "little") == size_bytes


FORMAT = _Bmp()
