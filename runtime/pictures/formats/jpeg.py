"""JPEG, and the first picture of a JPEG of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from intsr.runtime.pictures.damage import tail_of_jpeg
from intsr.runtime.pictures.formats.base import PictureFormat, keep_flags, save_by_vips
from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureHeader
from intsr.runtime.pictures.pillow import decoded_by_pillow

# The list of pictures in a JPEG of several.
_MP_ENTRIES = 0xB002


class _Jpeg(PictureFormat):
    name = "JPEG"
    suffixes = (".jpg", ".jpeg")
    place = 1
    max_side_px = 65500
    default_quality = 95
    keeps = ("EXIF", "XMP", "ICC", "IPTC")
    # One segment: its length has 16 bits and counts itself, and XMP's name stands in front.
    max_xmp_bytes = 65533 - 29

    def recognizes(self, head: bytes) -> bool:
        return head.startswith(b"\xff\xd8\xff")

    def notes_of_image(self, image: Image.Image) -> tuple[str, ...]:
        # Smaller pictures of the same view do not count. Source: CIPA DC-007, 5.2.3.3.
        entries = (getattr(image, "mpinfo", None) or {}).get(_MP_ENTRIES, ())
        kinds = [str(entry.get("Attribute", {}).get("MPType")) for entry in entries]
        views = sum(not kind.startswith("Large Thumbnail") for kind in kinds)
        return (f"only the first of {views} pictures in the file was read",) if views > 1 else ()

    def decode(self, header: PictureHeader) -> LoadedImage:
        try:
            return decoded_by_pillow(header)
        except OSError:
            if not (tail := tail_of_jpeg(header.path)):
                raise
        loaded = decoded_by_pillow(header, tail=tail)
        return replace(loaded, notes=(*loaded.notes, "the end mark of the JPEG is missing; the picture is whole"))

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        keep = keep_flags(metadata)
        save_by_vips(image, path, "jpegsave_target", Q=quality, subsample_mode="off", keep=keep)

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        return tail.endswith(b"\xff\xd9")


FORMAT = _Jpeg()
