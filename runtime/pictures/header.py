"""What the header of a picture says, before anything is decoded, and one kind of error for all that is broken."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL import features as pillow_features

from intsr.errors import ImageError
from intsr.runtime.pictures.arrays import ALPHA_MODES, GREY_16_MODES, GREY_MODES, PEAK_16
from intsr.runtime.pictures.formats.avif import avif_is_deep
from intsr.runtime.pictures.formats.unread import is_avif, is_tiff, other_kind
from intsr.runtime.pictures.metadata.fields import adopt_raw_profile, orientation_from_exif
from intsr.runtime.pictures.row_pipe import PNG_SIGNATURE

# What is tried on a file's content; its name does not matter.
READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF")
_FORMATS = "a PNG, JPEG, WebP, TIFF, BMP or AVIF picture"
# What Pillow's decoders raise on broken data.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
)
# Pillow's own copy of a pixel while it decodes; what those decoders take that have the whole picture too, measured.
_PILLOW_BYTES = 4
_DECODER_BYTES = {"WEBP": 14, "AVIF": 14}
_SMALL_BYTES = 1 << 20
# The list of pictures in a JPEG of several.
_MP_ENTRIES = 0xB002
# The highest of the levels in a PNG, by Pillow's name of what it holds.
_GREY_LEVELS = {"L;2": 3, "L;4": 15, "L": 255}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file's header says. width_px, height_px: upright. mode: Pillow's name of it. has_alpha: it may still be
    opaque everywhere. bits, channels: as the picture will be read, 8 or 16 and 1 or 3, transparency not counted.
    decoder_bytes: what its decoder takes for each pixel, beside the arrays that are the result.
    """

    width_px: int
    height_px: int
    mode: str
    has_alpha: bool
    bits: int
    channels: int
    decoder_bytes: int = _PILLOW_BYTES

    @property
    def pixels_bytes(self) -> int:
        """Of the decoded arrays."""
        return self.width_px * self.height_px * (self.channels + self.has_alpha) * self.bits // 8

    @property
    def decode_bytes(self) -> int:
        """Peak of memory while the picture is read."""
        decoder_bytes = self.width_px * self.height_px * self.decoder_bytes
        # Turned upright, there are two of them for a moment.
        return self.pixels_bytes + max(decoder_bytes, self.pixels_bytes)


@contextmanager
def broken_as_image_error(path: Path) -> Iterator[None]:
    """Every failure inside becomes an ImageError that names the file."""
    try:
        if not path.exists():
            raise ImageError(path, "no such file")
        if not path.is_file():
            # Size and content of a pipe are not known beforehand, and reading it could wait for ever.
            raise ImageError(path, "not a regular file", _FORMATS, "save it as a file first")
        if path.stat().st_size == 0:
            raise ImageError(path, "file is empty", _FORMATS)
        with warnings.catch_warnings():
            # Pillow warns above half of its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    except UnidentifiedImageError as error:
        if is_avif(path) and not pillow_features.check("avif"):
            fix = "install a Pillow with AVIF, or convert it"
            raise ImageError(path, "AVIF, which this Pillow does not read", fix=fix) from error
        if kind := other_kind(path):
            fix = "convert it to PNG or JPEG first"
            raise ImageError(path, f"{kind} file, which is not read", _FORMATS, fix) from error
        raise ImageError(path, "not a picture, whatever its name says", _FORMATS) from error
    except Image.DecompressionBombError as error:
        raise too_many_pixels(path) from error
    except _BROKEN as error:
        raise ImageError(path, f"cannot be read ({error})", "a whole picture file") from error


def too_many_pixels(path: Path) -> ImageError:
    limit = f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
    return ImageError(path, "more pixels than the limit", limit, "cut it into parts first")


class _File(io.BufferedReader):
    """Asks for no more bytes than there are: Python makes room for what is asked for, and headers lie.

    patches: what to read at some offsets in place of what is there. tail: what follows the end, once.
    """

    def __init__(self, path: Path, patches: Mapping[int, bytes], tail: bytes) -> None:
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size
        self._patches, self._tail = patches, tail

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell() if self._patches else 0
        if size is not None and size > _SMALL_BYTES:
            size = min(size, max(self._end - self.tell(), 0))
        data = super().read(size)
        for offset, patch in self._patches.items():
            at = offset - start
            if -len(patch) < at < len(data):
                inner = patch[max(-at, 0) : len(data) - at]
                at = max(at, 0)
                data = data[:at] + inner + data[at + len(inner) :]
        if not data and size != 0 and self._tail:
            data, self._tail = self._tail, b""
        return data


@contextmanager
def opened(path: Path, patches: Mapping[int, bytes] | None = None, tail: bytes = b"") -> Iterator[Image.Image]:
    """Not decoded yet. patches: bytes that are to be read in place of others. tail: bytes behind the end."""
    # A TIFF is judged first: Pillow opens previews, and takes signed numbers for others.
    formats = READ_FORMATS if is_tiff(path) else [name for name in READ_FORMATS if name != "TIFF"]
    with _File(path, patches or {}, tail) as file, Image.open(file, formats=formats) as image:
        yield image


def info_from_image(path: Path, image: Image.Image, turned_later: bool) -> ImageInfo:
    """Of an image that is not decoded, and no TIFF. turned_later: whether its size is to be upright already."""
    stored, (width_px, height_px) = stored_modes(image), image.size
    grey_16 = image.mode in GREY_16_MODES
    deep = grey_16 or (image.format == "PNG" and ";16" in stored)
    has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
    grey = grey_16 or image.mode in GREY_MODES or "LA;16" in stored
    if turned_later and _orientation(path, image) >= 5:
        width_px, height_px = height_px, width_px
    decoder_bytes = _DECODER_BYTES.get(image.format or "", _PILLOW_BYTES)
    bits, channels = 16 if deep else 8, 1 if grey else 3
    return ImageInfo(width_px, height_px, image.mode, has_alpha, bits, channels, decoder_bytes)


def _orientation(path: Path, image: Image.Image) -> int:
    try:
        # For a PNG, Pillow's own method decodes the whole picture: what it looks for may lie behind the pixels.
        if image.format != "PNG":
            return orientation_from_exif(image.getexif())
        if _has_late_metadata(path):
            image.load()
        adopt_raw_profile(image)
        return orientation_from_exif(Image.Image.getexif(image))
    except Exception:  # Pillow's EXIF reader raises many kinds on broken data; the size is known all the same.
        return 1


def stored_modes(image: Image.Image) -> str:
    """Pillow's names of what the file holds. Only before load() does it tell."""
    return " ".join(str(tile[3]) for tile in image.tile)


def peak_16(stored: str) -> int:
    """What white is in a mode of 16 bits: Pillow leaves packed 12-bit values as they are. stored: `stored_modes`."""
    return 4095 if "I;12" in stored else PEAK_16


def scale_transparent_level(image: Image.Image) -> None:
    """Of a PNG in grey of few bits, the transparent level, as it is among the decoded ones. Before load().

    Pillow stretches 2 and 4 bits to 8, but not what is said of them. Source: PNG Specification, Third Edition,
    11.3.1.1: only the low bits count.
    """
    level, stored = image.info.get("transparency"), stored_modes(image)
    if image.format == "PNG" and isinstance(level, int) and stored in _GREY_LEVELS:
        most = _GREY_LEVELS[stored]
        image.info["transparency"] = (level & most) * 255 // most


def _has_late_metadata(path: Path) -> bool:
    """Whether chunks of EXIF or text follow the pixels of a PNG."""
    with path.open("rb") as file:
        file.seek(len(PNG_SIGNATURE))
        seen_pixels = False
        while len(head := file.read(8)) == 8:
            seen_pixels = seen_pixels or head[4:] == b"IDAT"
            if seen_pixels and head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    return False


def notes_from_image(path: Path, image: Image.Image, info: ImageInfo) -> tuple[str, ...]:
    notes = []
    if ";16" in stored_modes(image) and info.bits == 8:
        notes.append("16 bits a channel became 8: this kind of picture is read in no other way")
    if image.format == "AVIF" and avif_is_deep(path):
        notes.append("10 or 12 bits a channel became 8: AVIF is read in no other way")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        notes.append(f"only the first of {frames} frames was read")
    return tuple(notes)


def views_of_image(image: Image.Image) -> int:
    """Pictures in a JPEG of several, smaller ones of the same view left out. Source: CIPA DC-007, 5.2.3.3."""
    entries = getattr(image, "mpinfo", None) or {}
    kinds = [str(entry.get("Attribute", {}).get("MPType")) for entry in entries.get(_MP_ENTRIES, ())]
    return sum(not kind.startswith("Large Thumbnail") for kind in kinds)
