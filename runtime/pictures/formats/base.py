"""What every picture format is. Each has a file in this folder, with one instance called `FORMAT`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from intsr.runtime.pictures.arrays import note_of_other_profile
from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureHeader
from intsr.runtime.pictures.pillow import PictureFile, decoded_by_pillow, header_by_pillow
from intsr.runtime.pictures.vips import vips


class PictureFormat:
    """A format of picture files: how it is recognised, read, written and checked, and what it can hold."""

    # For people, and in capitals Pillow's.
    name: ClassVar[str]
    # The first is the usual one.
    suffixes: ClassVar[tuple[str, ...]]
    # Where lists for people have it.
    place: ClassVar[int] = 99
    holds_alpha: ClassVar[bool] = False
    holds_16_bits: ClassVar[bool] = False
    # Else grey becomes colour.
    holds_grey: ClassVar[bool] = True
    # What its header, or its own reader, takes; and the limit of all pixels in bytes.
    max_side_px: ClassVar[int] = 2**31 - 1
    max_bytes: ClassVar[int | None] = None
    # None where it is lossless.
    default_quality: ClassVar[int | None] = None
    # Of memory for each pixel, beside the array: of the decoder, and of an encoder that holds the whole picture.
    decoder_bytes: ClassVar[int] = 4
    encoder_bytes: ClassVar[int] = 0
    # Of EXIF, XMP, ICC and IPTC, what has a place; and the longest EXIF or XMP that has.
    keeps: ClassVar[tuple[str, ...]] = ("EXIF", "XMP", "ICC")
    max_exif_bytes: ClassVar[int] = 65533
    max_xmp_bytes: ClassVar[int] = 2**31 - 1

    def recognizes(self, head: bytes) -> bool:
        """Tell by the first 32 bytes of a file, not by its name."""
        raise NotImplementedError

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        """Read the header of a file that was recognised. Raises ImageError, and what broken data raises."""
        return self.header_by_pillow(path, file)

    def header_by_pillow(self, path: Path, file: PictureFile, **more: Any) -> PictureHeader:
        """Read the header of what Pillow opens. more: see there."""
        own: dict[str, Any] = {"notes": self.notes_of_image, "decoder_bytes": self.decoder_bytes}
        return header_by_pillow(self.name, path, file, **own | more)

    def notes_of_image(self, image: Image.Image) -> tuple[str, ...]:
        """Tell what of an opened image will be lost, for people."""
        return ()

    def decode(self, header: PictureHeader) -> LoadedImage:
        """Decode the picture as it is stored, not upright yet. Raises ImageError, and what broken data raises."""
        return decoded_by_pillow(header)

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        """Encode a libvips image, whose fields hold the metadata, into an empty file.

        Raises OSError, ValueError, pyvips.Error.
        """
        raise NotImplementedError

    def is_whole(self, head: bytes, tail: bytes, size_bytes: int) -> bool:
        """Tell by its first 32 and its last 8 bytes whether a written file is there to its end."""
        return True

    def kept(self, metadata: ImageMetadata) -> tuple[ImageMetadata, tuple[str, ...]]:
        """Return what of the metadata the format holds, and one note that names the rest."""
        found = {"EXIF": metadata.exif, "XMP": metadata.xmp, "ICC": metadata.icc_profile, "IPTC": metadata.iptc}
        most = {"EXIF": self.max_exif_bytes, "XMP": self.max_xmp_bytes}
        kept = {
            name: data if name in self.keeps and len(data) <= most.get(name, len(data)) else b""
            for name, data in found.items()
        }
        if not self.holds_grey and note_of_other_profile(metadata.icc_profile, grey=False):
            kept["ICC"] = b""
        dropped = [name for name, data in found.items() if data and not kept[name]] + list(metadata.others)
        note = f"{', '.join(dropped)} dropped: {self.name} has no place for it, or it is kept in no format"
        result = ImageMetadata(kept["EXIF"], kept["ICC"], kept["XMP"], kept["IPTC"], metadata.dpi)
        return result, (note,) if dropped else ()


def save_by_vips(image: Any, path: Path, save: str, **settings: Any) -> None:
    """Run one of libvips' savers. By descriptor: it takes names in UTF-8 only, and brackets in them for options."""
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    try:
        getattr(image, save)(vips().Target.new_to_descriptor(descriptor), **settings)
    finally:
        os.close(descriptor)


def save_by_pillow(image: Any, path: Path, name: str, **settings: Any) -> None:
    """Save what libvips has no encoder for. Settings that are empty are left out."""
    pixels = np.frombuffer(image.write_to_memory(), np.uint8).reshape(image.height, image.width, image.bands)
    whole = Image.fromarray(pixels[..., 0] if image.bands == 1 else pixels)
    whole.save(path, format=name, **{key: value for key, value in settings.items() if value})


def keep_flags(metadata: ImageMetadata) -> int:
    """Return flags for libvips' `keep`: else it writes an EXIF of its own, in which JPEG has the resolution."""
    found = (metadata.exif or metadata.dpi, metadata.xmp, metadata.iptc, metadata.icc_profile)
    return sum(flag for flag, data in zip((1, 2, 4, 8), found, strict=True) if data)
