"""AVIF, which Pillow reads and writes: its encoder keeps transparency closer than libvips' does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import features

from intsr.errors import ImageError
from intsr.runtime.pictures.picture import ImageMetadata, PictureFile, PictureHeader
from intsr.runtime.pictures.pillow import PillowFormat, save_by_pillow

# Boxes in front of the pixels; a picture of a thousand tiles has about 64 KiB of them.
_MOST_HEAD_BYTES = 1 << 20


class _Avif(PillowFormat):
    name = "AVIF"
    suffixes = (".avif",)
    head = rb".{4}ftypavi[fs]"
    place = 3
    holds_alpha = True
    holds_grey = False
    max_side_px = 16384
    default_quality = 90
    decoder_bytes = 14
    encoder_bytes = 48

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        if not features.check("avif"):
            fix = "install a Pillow with AVIF, or convert it"
            raise ImageError(path, "AVIF, which this Pillow does not read", fix=fix)
        head = file.read(_MOST_HEAD_BYTES)
        header = self.header_by_pillow(path, file)
        # The third byte of `av1C`: tier, high_bitdepth, ... Source: AV1 in ISOBMFF, 2.3.
        at = head.find(b"av1C")
        if 0 <= at < len(head) - 6 and head[at + 6] & 0x40:
            note = "10 or 12 bits a channel became 8: AVIF is read in no other way"
            return replace(header, notes=(note, *header.notes))
        return header

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        if not features.check("avif"):
            raise OSError("this Pillow has no AVIF")
        about = {"exif": metadata.exif, "icc_profile": metadata.icc_profile, "xmp": metadata.xmp}
        save_by_pillow(image, path, self.name, quality=quality, subsampling="4:4:4", **about)


FORMAT = _Avif()
