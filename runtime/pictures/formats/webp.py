"""WebP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.pillow import PillowFormat
from intsr.runtime.pictures.vips import save_by_vips


class _WebP(PillowFormat):
    name = "WebP"
    suffixes = (".webp",)
    head = rb"RIFF.{4}WEBP"
    place = 2
    holds_alpha = True
    holds_grey = False
    max_side_px = 16383
    default_quality = 95
    decoder_bytes = 14
    encoder_bytes = 30

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        save_by_vips(image, path, "webpsave_target", metadata, Q=quality)

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        return int.from_bytes(head[4:8], "little") + 8 == size_bytes


FORMAT = _WebP()
