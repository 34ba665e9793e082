"""Read pictures, broken ones included: what cannot be kept is an error or a note, never silence."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from intsr.errors import ImageError
from intsr.runtime.image_metadata import ImageMetadata, metadata_from_image, orientation_from_image
from intsr.runtime.networks import Array

# What is tried on a file's content; its name does not matter.
READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
_GREY_MODES = ("1", "L", "LA")
_GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_ALPHA_MODES = ("LA", "PA", "RGBA")
# What Pillow's decoders raise on broken data.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file's header says. width_px, height_px: upright. has_alpha: it may still be opaque everywhere."""

    width_px: int
    height_px: int
    mode: str
    has_alpha: bool


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A picture, upright. pixels: (H, W, 3) uint8, or (H, W) grey, uint8 or uint16. alpha: (H, W) uint8, None where
    opaque. notes: what could not be kept, for people.
    """

    pixels: Array
    alpha: Array | None
    metadata: ImageMetadata
    notes: tuple[str, ...]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, not decoded yet. Every failure inside becomes an ImageError that names the file."""
    formats = "a PNG, JPEG, WebP, TIFF or BMP picture"
    try:
        if not path.exists():
            raise ImageError(path, "no such file")
        if path.stat().st_size == 0:
            raise ImageError(path, "file is empty", formats)
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; here the limit is the limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(path, formats=READ_FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:
        raise ImageError(path, "not a picture, whatever its name says", formats) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise ImageError(path, "more pixels than the limit", limit, "cut it into parts first") from error
    except _BROKEN as error:
        raise ImageError(path, f"cannot be read ({error})", "a whole picture file") from error


def read_info(path: Path) -> ImageInfo:
    """The header alone. Raises ImageError."""
    with _opened(path) as image:
        width_px, height_px = image.size
        try:
            # Pillow turns a TIFF itself, and says so in its size from the start.
            turned = image.format != "TIFF" and orientation_from_image(image) >= 5
        except ImageError:
            turned = False
        if turned:
            width_px, height_px = height_px, width_px
        return ImageInfo(width_px, height_px, image.mode, _has_alpha(image))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def read_image(path: Path, upscale_factor: int = 1) -> LoadedImage:
    """Decode a picture. upscale_factor: what sizes in its EXIF are multiplied by. Raises ImageError."""
    with _opened(path) as image:
        notes = _notes(image)
        image.load()
        image, metadata, more = _upright_with_metadata(image, upscale_factor)
        pixels, alpha = _pixels_and_alpha(image, path)
        if image.mode == "CMYK" and metadata.icc_profile:
            metadata = ImageMetadata(metadata.exif, b"", metadata.xmp)
            more = (*more, "CMYK became RGB; its ICC profile was dropped")
        return LoadedImage(pixels, alpha, metadata, (*notes, *more))


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    # Only before load() does Pillow tell how many bits the file has.
    stored = " ".join(str(tile[3]) for tile in image.tile)
    if ";16" in stored and image.mode not in _GREY_16_MODES:
        notes.append("16 bits a channel became 8: Pillow reads 16-bit colour no other way")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        notes.append(f"only the first of {frames} frames was read")
    return tuple(notes)


def _upright_with_metadata(
    image: Image.Image, upscale_factor: int
) -> tuple[Image.Image, ImageMetadata, tuple[str, ...]]:
    try:
        if orientation_from_image(image) != 1:
            image = ImageOps.exif_transpose(image)
        return image, metadata_from_image(image, upscale_factor), ()
    except Exception as error:  # Broken EXIF must not cost the picture, and Pillow raises many kinds on it.
        metadata = ImageMetadata(icc_profile=image.info.get("icc_profile") or b"")
        return image, metadata, (f"EXIF is broken and was dropped ({error})",)


def _pixels_and_alpha(image: Image.Image, path: Path) -> tuple[Array, Array | None]:
    """(H, W, 3) or (H, W) and an alpha that is None where opaque."""
    if image.mode in _GREY_16_MODES:
        if "transparency" in image.info:
            raise ImageError(path, "16-bit grey with transparency", "8 bits, or no transparency")
        return np.array(image, dtype=np.uint16), None
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise ImageError(path, f"pixel format {image.mode}", "8-bit grey or colour, or 16-bit grey", "convert it")
    grey = image.mode in _GREY_MODES
    if not _has_alpha(image):
        return np.array(image.convert("L" if grey else "RGB")), None
    rgba = np.array(image.convert("RGBA"))
    alpha = rgba[..., 3].copy()
    pixels = rgba[..., 0] if grey else rgba[..., :3]
    return np.ascontiguousarray(pixels), None if int(alpha.min()) == 255 else alpha
