"""Read pictures, broken ones included: what cannot be kept is an error or a note, never silence."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL import features as pillow_features

from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime import image_write
from intsr.runtime.image_deep import DeepTiff, deep_tiff_from_path, read_deep
from intsr.runtime.image_metadata import (
    ImageMetadata,
    metadata_from_exif,
    metadata_from_image,
    orientation_from_exif,
)
from intsr.runtime.image_pixels import ALPHA_MODES, COLOUR_MODES, GREY_16_MODES, GREY_MODES, arrays_from_image, turned
from intsr.runtime.networks import Array

# What is tried on a file's content; its name does not matter.
READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF")
_FORMATS = "a PNG, JPEG, WebP, TIFF, BMP or AVIF picture"
_AVIF_STARTS = (b"ftypavif", b"ftypavis")
# What Pillow's decoders raise on broken data.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error)
# Pillow's own copy of a pixel while it decodes.
_PILLOW_BYTES = 4
_SMALL_BYTES = 1 << 20
# Where an AVIF tells how its pixels are encoded.
_AVIF_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file's header says. width_px, height_px: upright. mode: Pillow's name of it. has_alpha: it may still be
    opaque everywhere. bits, channels: as the picture will be read, 8 or 16 and 1 or 3, transparency not counted.
    """

    width_px: int
    height_px: int
    mode: str
    has_alpha: bool
    bits: int
    channels: int

    @property
    def pixels_bytes(self) -> int:
        """Of the decoded arrays."""
        return self.width_px * self.height_px * (self.channels + self.has_alpha) * self.bits // 8

    @property
    def decode_bytes(self) -> int:
        """Peak of memory while the picture is read."""
        return max(self.pixels_bytes + self.width_px * self.height_px * _PILLOW_BYTES, 2 * self.pixels_bytes)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A picture, upright. pixels: (H, W, 3) or (H, W) grey, uint8 or uint16. alpha: (H, W) of the same dtype, None
    where opaque. notes: what could not be kept, for people.
    """

    pixels: Array
    alpha: Array | None
    metadata: ImageMetadata
    notes: tuple[str, ...]


def read_info(path: Path) -> ImageInfo:
    """The header alone. Raises ImageError."""
    with _broken_as_image_error(path):
        deep = deep_tiff_from_path(path)
        if deep is not None:
            return _deep_tiff_info(path, deep)
        with _opened(path) as image:
            # Pillow turns a TIFF itself, and says so in its size from the start.
            return _info(image, turned_later=image.format != "TIFF")


def read_image(path: Path, upscale_factor: int = 1) -> LoadedImage:
    """Decode a picture. upscale_factor: what sizes in its EXIF are multiplied by.

    Raises ImageError; OutOfMemoryError where the header promises more than the free memory holds.
    """
    with _broken_as_image_error(path):
        deep = deep_tiff_from_path(path)
        if deep is not None:
            loaded, orientation = _read_deep_tiff(path, deep, upscale_factor)
        else:
            loaded, orientation = _read_by_pillow(path, upscale_factor)
    return _upright(loaded, orientation)


def _read_by_pillow(path: Path, upscale_factor: int) -> tuple[LoadedImage, int]:
    """As stored, and the orientation."""
    with _opened(path) as image:
        info = _info(image, turned_later=False)
        _check_mode(path, image)
        _check_memory(path, info)
        notes = _notes(path, image, info)
        image.load()
        metadata, orientation, more = _metadata(image, upscale_factor)
        if not _is_deep(info):
            pixels, alpha, other = arrays_from_image(image, info.has_alpha)
            if image.mode == "CMYK":
                # The profile was of the inks.
                metadata = replace(metadata, icc_profile=b"")
            return LoadedImage(pixels, alpha, metadata, (*notes, *more, *other)), orientation
    # Pillow's copy is gone by now.
    pixels, alpha = read_deep(path, (info.width_px, info.height_px), info.channels, info.has_alpha)
    return LoadedImage(pixels, alpha, metadata, (*notes, *more)), orientation


def _deep_tiff_info(path: Path, deep: DeepTiff) -> ImageInfo:
    if Image.MAX_IMAGE_PIXELS is not None and deep.width_px * deep.height_px > 2 * Image.MAX_IMAGE_PIXELS:
        raise _too_many_pixels(path)
    sides = (deep.width_px, deep.height_px)
    width_px, height_px = sides if orientation_from_exif(deep.exif) < 5 else sides[::-1]
    mode = ("LA" if deep.has_alpha else "L") if deep.channels == 1 else ("RGBA" if deep.has_alpha else "RGB")
    return ImageInfo(width_px, height_px, f"{mode};16", deep.has_alpha, 16, deep.channels)


def _read_deep_tiff(path: Path, deep: DeepTiff, upscale_factor: int) -> tuple[LoadedImage, int]:
    """As stored, and the orientation."""
    info, sides = _deep_tiff_info(path, deep), (deep.width_px, deep.height_px)
    _check_memory(path, info)
    pixels, alpha = read_deep(path, sides, deep.channels, deep.has_alpha, deep.premultiplied)
    metadata = metadata_from_exif(
        deep.exif, deep.icc_profile, deep.xmp, (info.width_px, info.height_px), upscale_factor
    )
    notes = ("only the first of several frames was read",) if deep.more_frames else ()
    return LoadedImage(pixels, alpha, metadata, notes), orientation_from_exif(deep.exif)


@contextmanager
def _broken_as_image_error(path: Path) -> Iterator[None]:
    """Every failure inside becomes an ImageError that names the file."""
    try:
        if not path.exists():
            raise ImageError(path, "no such file")
        if path.stat().st_size == 0:
            raise ImageError(path, "file is empty", _FORMATS)
        with warnings.catch_warnings():
            # Pillow warns above half of its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    except UnidentifiedImageError as error:
        if _is_avif(path) and not pillow_features.check("avif"):
            fix = "install a Pillow with AVIF, or convert it"
            raise ImageError(path, "AVIF, which this Pillow does not read", fix=fix) from error
        raise ImageError(path, "not a picture, whatever its name says", _FORMATS) from error
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(path) from error
    except _BROKEN as error:
        raise ImageError(path, f"cannot be read ({error})", "a whole picture file") from error


def _too_many_pixels(path: Path) -> ImageError:
    limit = f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
    return ImageError(path, "more pixels than the limit", limit, "cut it into parts first")


def _is_avif(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12)[4:] in _AVIF_STARTS


class _File(io.BufferedReader):
    """Asks for no more bytes than there are: Python makes room for what is asked for, and headers lie."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _SMALL_BYTES:
            size = min(size, max(self._end - self.tell(), 0))
        return super().read(size)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Not decoded yet."""
    with _File(path) as file, Image.open(file, formats=READ_FORMATS) as image:
        yield image


def _info(image: Image.Image, turned_later: bool) -> ImageInfo:
    width_px, height_px = image.size
    try:
        if turned_later and orientation_from_exif(image.getexif()) >= 5:
            width_px, height_px = height_px, width_px
    except Exception:  # Pillow's EXIF reader raises many kinds on broken data; the size is known all the same.
        turned_later = False
    grey_16 = image.mode in GREY_16_MODES
    deep = grey_16 or (image.format == "PNG" and ";16" in _stored(image))
    has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
    grey = grey_16 or image.mode in GREY_MODES or "LA;16" in _stored(image)
    return ImageInfo(width_px, height_px, image.mode, has_alpha, 16 if deep else 8, 1 if grey else 3)


def _stored(image: Image.Image) -> str:
    # Only before load() does Pillow tell how many bits the file has.
    return " ".join(str(tile[3]) for tile in image.tile)


def _is_deep(info: ImageInfo) -> bool:
    """Whether Pillow would lose something."""
    return info.bits == 16 and (info.mode not in GREY_16_MODES or info.has_alpha)


def _check_mode(path: Path, image: Image.Image) -> None:
    if image.mode not in GREY_MODES + GREY_16_MODES + COLOUR_MODES:
        expected = "grey or colour of 8 or 16 bits"
        raise ImageError(path, f"pixel format {image.mode}", expected, "convert it")


def _check_memory(path: Path, info: ImageInfo) -> None:
    free = image_write.available_bytes()
    if free is not None and info.decode_bytes > free:
        got = f"{info.width_px}x{info.height_px} pixels need {info.decode_bytes >> 20} MiB, {free >> 20} MiB are free"
        raise OutOfMemoryError(path, got, fix="cut the picture into parts first")


def _notes(path: Path, image: Image.Image, info: ImageInfo) -> tuple[str, ...]:
    notes = []
    if ";16" in _stored(image) and info.bits == 8:
        notes.append("16 bits a channel became 8: this kind of picture is read in no other way")
    if image.format == "AVIF" and _avif_is_deep(path):
        notes.append("10 or 12 bits a channel became 8: AVIF is read in no other way")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        notes.append(f"only the first of {frames} frames was read")
    return tuple(notes)


def _avif_is_deep(path: Path) -> bool:
    """Source: AV1 Codec ISO Media File Format Binding 2.3, the third byte of `av1C`: tier, high_bitdepth, ..."""
    with path.open("rb") as file:
        head = file.read(_AVIF_HEAD_BYTES)
    at = head.find(b"av1C")
    return 0 <= at < len(head) - 6 and bool(head[at + 6] & 0x40)


def _metadata(image: Image.Image, upscale_factor: int) -> tuple[ImageMetadata, int, tuple[str, ...]]:
    """Of a decoded image; and its orientation, and notes."""
    try:
        orientation = orientation_from_exif(image.getexif())
        size = image.size if orientation < 5 else image.size[::-1]
        return metadata_from_image(image, size, upscale_factor), orientation, ()
    except Exception as error:  # Broken EXIF must not cost the picture, and Pillow raises many kinds on it.
        metadata = ImageMetadata(icc_profile=image.info.get("icc_profile") or b"")
        return metadata, 1, (f"EXIF is broken and was dropped ({error})",)


def _upright(loaded: LoadedImage, orientation: int) -> LoadedImage:
    if orientation == 1:
        return loaded
    alpha = None if loaded.alpha is None else turned(loaded.alpha, orientation)
    return replace(loaded, pixels=turned(loaded.pixels, orientation), alpha=alpha)
