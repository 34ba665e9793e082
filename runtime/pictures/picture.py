"""What a picture file is: its bytes, its header, what is decoded of it, and what its format can hold."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from intsr.arrays import Array

_SMALL_BYTES = 1 << 20


class PictureFile(io.BufferedReader):
    """A file that is asked for no more bytes than there are: Python makes room for what is asked, and headers lie."""

    def __init__(self, path: Path, patches: Mapping[int, bytes] | None = None, tail: bytes = b"") -> None:
        """patches: what to read at some offsets in place of what is there. tail: what follows the end, once."""
        super().__init__(io.FileIO(path))
        self._end = self.seek(0, io.SEEK_END)
        self.seek(0)
        self.patches, self._tail = dict(patches or {}), tail

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell() if self.patches else 0
        if size is not None and size > _SMALL_BYTES:
            size = min(size, max(self._end - self.tell(), 0))
        data = super().read(size)
        for offset, patch in self.patches.items():
            at = offset - start
            if -len(patch) < at < len(data):
                inner = patch[max(-at, 0) : len(data) - at]
                at = max(at, 0)
                data = data[:at] + inner + data[at + len(inner) :]
        if not data and size != 0 and self._tail:
            data, self._tail = self._tail, b""
        return data


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
    def decode_bytes(self) -> int:
        """Peak of memory while the picture is decoded."""
        pixels = self.width_px * self.height_px
        arrays_bytes = pixels * (self.channels + self.has_alpha) * self.bits // 8
        # Turned upright, there are two of the arrays for a moment.
        return arrays_bytes + max(pixels * self.decoder_bytes, arrays_bytes)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A decoded picture, upright once the reader gives it away."""

    # (H, W, 3) or (H, W) grey, uint8 or uint16.
    pixels: Array
    # (H, W) of the same dtype; None where the picture is opaque.
    alpha: Array | None
    metadata: ImageMetadata
    # What could not be kept, for people.
    notes: tuple[str, ...] = ()


class PictureFormat:
    """A format of picture files: how it is recognised, read, written and checked, and what it can hold.

    Each has a file in `formats`, with one instance called `FORMAT`.
    """

    # For people, and in capitals Pillow's.
    name: ClassVar[str]
    # The first is the usual one.
    suffixes: ClassVar[tuple[str, ...]]
    # A pattern that the first 32 bytes of a file begin with.
    head: ClassVar[bytes]
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
        return re.match(self.head, head, re.DOTALL) is not None

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        """Read the header of a file that was recognised. Raises ImageError, and what broken data raises."""
        raise NotImplementedError

    def decode(self, header: PictureHeader) -> LoadedImage:
        """Decode the picture as it is stored, not upright yet; its alpha may be opaque.

        Raises ImageError, and what broken data raises.
        """
        raise NotImplementedError

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


def note_of_other_profile(profile: bytes, grey: bool) -> str:
    """Return a note where an ICC profile says nothing of such pixels; else nothing. Source: ICC.1:2022, 7.2."""
    of, fitting = profile[16:20], (b"GRAY", b"RGB ") if grey else (b"RGB ",)
    if profile[36:40] != b"acsp" or of in fitting:
        return ""
    name = of.decode("ascii", "replace").strip()
    return f"ICC was dropped: it is a profile of {name}, and the picture is {'grey' if grey else 'RGB'}"
