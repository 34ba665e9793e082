"""Pictures read by Pillow: the header without decoding, then pixels, transparency and metadata."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from intsr.errors import ImageError
from intsr.runtime.pictures.arrays import (
    ALPHA_MODES,
    COLOUR_MODES,
    GREY_16_MODES,
    GREY_MODES,
    PEAK_16,
    arrays_from_image,
)
from intsr.runtime.pictures.depth16 import Samples, read_samples
from intsr.runtime.pictures.metadata.read import metadata_of_image, orientation_of_image
from intsr.runtime.pictures.picture import LoadedImage, PictureHeader

_SMALL_BYTES = 1 << 20
# The highest of the levels in a PNG, by Pillow's name of what it holds.
_GREY_LEVELS = {"L;2": 3, "L;4": 15, "L": 255}


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


@contextmanager
def opened(file: PictureFile, name: str) -> Iterator[Image.Image]:
    """Open a file of a format by Pillow; nothing is decoded yet.

    By its own reader: Image.open would apply its limit of pixels to what has been written here, too.
    """
    Image.init()
    factory, _ = Image.OPEN[name.upper()]
    file.seek(0)
    with factory(file, "") as image:
        yield image


def header_by_pillow(
    name: str,
    path: Path,
    file: PictureFile,
    *,
    decoder_bytes: int,
    notes: Callable[[Image.Image], tuple[str, ...]],
    has_late_metadata: bool = False,
    details: Any = None,
) -> PictureHeader:
    """Read the header of any format but TIFF.

    name: the format's. decoder_bytes, details: see `PictureHeader`. notes: what is to be said of the opened image.
    has_late_metadata: there are chunks behind the pixels, which Pillow finds only as it decodes.
    """
    with opened(file, name) as image:
        found = notes(image)
        stored, frames = stored_modes(image), getattr(image, "n_frames", 1)
        grey_16 = image.mode in GREY_16_MODES
        is_16_bit = grey_16 or (image.format == "PNG" and ";16" in stored)
        is_grey = grey_16 or image.mode in GREY_MODES or "LA;16" in stored
        if ";16" in stored and not is_16_bit:
            found += ("16 bits a channel became 8: this kind of picture is read in no other way",)
        if frames > 1 and image.format != "MPO":
            found += (f"only the first of {frames} frames was read",)
        has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
        (width_px, height_px) = image.size
        if has_late_metadata and not has_too_many_pixels(*image.size):
            image.load()
        orientation, more = orientation_of_image(image)
    if orientation >= 5:
        width_px, height_px = height_px, width_px
    return PictureHeader(
        path=path,
        format=name,
        width_px=width_px,
        height_px=height_px,
        bits=16 if is_16_bit else 8,
        channels=1 if is_grey else 3,
        has_alpha=has_alpha,
        orientation=orientation,
        decoder_bytes=decoder_bytes,
        notes=(*found, *more),
        details=details,
    )


def decoded_by_pillow(
    header: PictureHeader, patches: Mapping[int, bytes] | None = None, tail: bytes = b""
) -> LoadedImage:
    """Decode a picture as it is stored, not upright yet.

    patches, tail: see `PictureFile`. Raises ImageError, and what Pillow does on broken data.
    """
    notes = header.notes
    with PictureFile(header.path, patches, tail) as file:
        with opened(file, header.format) as image:
            check_mode(header.path, image)
            _scale_transparent_level(image)
            # 16-bit grey is Pillow's own; in colour, or with transparency, it would lose half of the bits.
            by_vips = header.bits == 16 and (image.mode not in GREY_16_MODES or header.has_alpha)
            size, mode, name = image.size, image.mode, image.format
            image.load()
            metadata = metadata_of_image(image, turned=header.orientation >= 5)
            if not by_vips:
                pixels, alpha, more = arrays_from_image(image, header.has_alpha)
                notes += more
        if by_vips:
            # Pillow's copy of the pixels goes.
            del image
            samples = Samples(size, header.channels, 16, header.channels if header.has_alpha else None)
            pixels, alpha = read_samples(file, samples)
    if name == "BMP" and alpha is not None and not alpha.any():
        # Some programs announce transparency, and leave it empty.
        alpha, notes = None, (*notes, "its transparency is 0 everywhere, and was taken for none")
    if mode == "CMYK":
        # The profile was of the inks.
        metadata = replace(metadata, icc_profile=b"")
    return LoadedImage(pixels, alpha, metadata, notes)


def has_too_many_pixels(width_px: int, height_px: int) -> bool:
    """Tell whether a picture is above Pillow's limit for files of strangers."""
    return Image.MAX_IMAGE_PIXELS is not None and width_px * height_px > 2 * Image.MAX_IMAGE_PIXELS


def check_mode(path: Path, image: Image.Image) -> None:
    """Raises ImageError for pixels that have no meaning as grey or colour."""
    if image.mode not in GREY_MODES + GREY_16_MODES + COLOUR_MODES:
        expected = "grey or colour of 8 or 16 bits"
        raise ImageError(path, f"pixel format {image.mode}", expected, "convert it")


def stored_modes(image: Image.Image) -> str:
    """Return Pillow's names of what the file holds. Call it before load()."""
    return " ".join(str(tile[3]) for tile in image.tile)


def peak_16(image: Image.Image) -> int:
    """Return white in a mode of 16 bits: Pillow leaves packed 12-bit values as they are. Call it before load()."""
    return 4095 if "I;12" in stored_modes(image) else PEAK_16


def _scale_transparent_level(image: Image.Image) -> None:
    """Scale the transparent level of a PNG in grey of few bits as its pixels will be. Call it before load().

    Pillow stretches 2 and 4 bits to 8, but not what is said of them. Source: PNG Specification, Third Edition,
    11.3.1.1: only the low bits count.
    """
    level, stored = image.info.get("transparency"), stored_modes(image)
    if image.format == "PNG" and isinstance(level, int) and stored in _GREY_LEVELS:
        most = _GREY_LEVELS[stored]
        image.info["transparency"] = (level & most) * 255 // most
