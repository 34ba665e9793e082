"""What is known of a picture file from its header, and what a decoded picture is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intsr.arrays import Array


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What a picture carries beside its pixels; a field is empty where there is nothing of its kind."""

    # A TIFF header and directories, with or without `Exif\0\0` in front. Orientation, sides and thumbnail are still
    # the original's: the writer puts them right.
    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    # The body of a JPEG's APP13 segment.
    iptc: bytes = b""
    # Pixels an inch along x and y, of the upright picture.
    dpi: tuple[float, float] | None = None
    # Names of what is there and no output keeps, for people.
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureHeader:
    """What a file says before it is decoded. It is read once, and decoding goes on from here."""

    path: Path
    # The name of its `PictureFormat`.
    format: str
    # Of the upright picture.
    width_px: int
    height_px: int
    # Of the decoded picture: 8 or 16, and 1 or 3 without transparency.
    bits: int
    channels: int
    # The picture may still be opaque everywhere.
    has_alpha: bool
    # EXIF's, 1 to 8: what decoding has to undo.
    orientation: int = 1
    # What the decoder takes for each pixel, beside the arrays that are the result.
    decoder_bytes: int = 4
    # What will be lost, for people.
    notes: tuple[str, ...] = ()
    # What the format itself needs for decoding.
    details: Any = None

    @property
    def pixels_bytes(self) -> int:
        """Size of the decoded arrays."""
        return self.width_px * self.height_px * (self.channels + self.has_alpha) * self.bits // 8

    @property
    def decode_bytes(self) -> int:
        """Peak of memory while the picture is decoded."""
        # Turned upright, there are two of the arrays for a moment.
        return self.pixels_bytes + max(self.width_px * self.height_px * self.decoder_bytes, self.pixels_bytes)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A decoded, upright picture."""

    # (H, W, 3) or (H, W) grey, uint8 or uint16.
    pixels: Array
    # (H, W) of the same dtype; None where the picture is opaque.
    alpha: Array | None
    metadata: ImageMetadata
    # What could not be kept, for people.
    notes: tuple[str, ...] = ()
