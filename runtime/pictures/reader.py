"""Read pictures, broken ones included: what is lost of them, and would be missed, is an error or a note."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from intsr import memory
from intsr.arrays import Array
from intsr.errors import ImageError, OutOfMemoryError, UsageError
from intsr.runtime.pictures.formats.registry import EXPECTED, FORMATS, HEAD_BYTES, PICTURE_SUFFIXES, other_kind
from intsr.runtime.pictures.picture import LoadedImage, PictureFile, PictureHeader, note_of_other_profile
from intsr.runtime.pictures.pillow import has_too_many_pixels

# What Pillow's decoders raise on broken data.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, RuntimeError),
    struct.error,
)
# 65535 = 255 * 257: full scale stays full scale.
_LEVELS_OF_16_BITS = 257.0


def list_pictures(folder: Path, *, or_picture: bool = False) -> list[Path]:
    """List the picture files directly in a folder, not hidden ones, by name; nothing is opened.

    or_picture: `folder` may be a picture itself, which is then the only one. Raises UsageError where there is none.
    """
    if or_picture and folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError(folder, "no such folder", "a folder of pictures" + ", or a picture" * or_picture)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise UsageError(folder, "no picture", f"files ending in {', '.join(PICTURE_SUFFIXES)}")
    return found


def read_header(path: Path) -> PictureHeader:
    """Read what a file says of its picture; nothing is decoded. Its content decides, not its name.

    Raises ImageError.
    """
    with _broken_as_image_error(path), PictureFile(path) as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        found = next((item for item in FORMATS if item.recognizes(head)), None)
        if found is None and (kind := other_kind(head)):
            raise ImageError(path, f"{kind} file, which is not read", EXPECTED, "convert it to PNG or JPEG first")
        if found is None:
            raise ImageError(path, "not a picture, whatever its name says", EXPECTED)
        header = found.read_header(path, file)
        if has_too_many_pixels(header.width_px, header.height_px):
            raise Image.DecompressionBombError
    return header


def read_image(picture: Path | PictureHeader) -> LoadedImage:
    """Decode a picture, whose header may have been read before.

    Raises ImageError; OutOfMemoryError where the header promises more than the free memory holds.
    """
    header = picture if isinstance(picture, PictureHeader) else read_header(picture)
    with _broken_as_image_error(header.path):
        free = memory.free_bytes()
        if free is not None and header.decode_bytes > free:
            size = f"{header.width_px}x{header.height_px} pixels"
            got = f"{size} need {header.decode_bytes >> 20} MiB, {free >> 20} MiB are free"
            raise OutOfMemoryError(header.path, got, fix="cut the picture into parts first")
        loaded = next(item for item in FORMATS if item.name == header.format).decode(header)
    pixels, alpha, metadata, notes = loaded.pixels, loaded.alpha, loaded.metadata, loaded.notes
    if alpha is not None and int(alpha.min()) == np.iinfo(alpha.dtype).max:
        alpha = None
    if header.orientation > 1:
        pixels = turned(pixels, header.orientation)
        alpha = None if alpha is None else turned(alpha, header.orientation)
    if note := _note_of_profile(metadata.icc_profile, pixels.ndim == 2):
        metadata, notes = replace(metadata, icc_profile=b""), (*notes, note)
    return LoadedImage(pixels, alpha, metadata, notes)


def read_pixels(path: Path) -> Array:
    """Read (H, W, 3) RGB or (H, W) grey, float64 in [0, 255]; 16-bit components keep their fractions.

    Upright, and without an alpha channel that is opaque. Raises ImageError for what `read_image` refuses, and for
    real transparency, which has no colour of its own to measure.
    """
    image = read_image(path)
    if image.alpha is not None:
        raise ImageError(path, "transparent pixels", "an opaque picture", "flatten it onto a background first")
    pixels = image.pixels.astype(np.float64)
    return pixels / _LEVELS_OF_16_BITS if image.pixels.dtype == np.uint16 else pixels


@contextmanager
def _broken_as_image_error(path: Path) -> Iterator[None]:
    """Turn every failure inside into an ImageError that names the file."""
    try:
        if not path.exists():
            raise ImageError(path, "no such file")
        if not path.is_file():
            # Size and content of a pipe are not known beforehand, and reading it could wait for ever.
            raise ImageError(path, "not a regular file", EXPECTED, "save it as a file first")
        if path.stat().st_size == 0:
            raise ImageError(path, "file is empty", EXPECTED)
        with warnings.catch_warnings():
            # Pillow warns of much that is no concern of whoever has the picture.
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    except Image.DecompressionBombError as error:
        limit = f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
        raise ImageError(path, "more pixels than the limit", limit, "cut it into parts first") from error
    except _BROKEN as error:
        raise ImageError(path, f"cannot be read ({error})", "a whole picture file") from error


def turned(pixels: Array, orientation: int) -> Array:
    """Turn (H, W) or (H, W, C) as stored upright, contiguous. orientation: EXIF's, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # What remains is a mirroring of rows, of columns, of both.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _note_of_profile(profile: bytes, grey: bool) -> str:
    """Return a note where an ICC profile is of other colours, or not whole, or no reader of profiles takes it."""
    if not profile:
        return ""
    if note := note_of_other_profile(profile, grey):
        return note
    broken = int.from_bytes(profile[:4], "big") != len(profile)
    try:
        ImageCms.ImageCmsProfile(BytesIO(profile))
    except ImportError:  # This Pillow was built without it.
        pass
    except (OSError, ValueError, TypeError):
        broken = True
    return "ICC was dropped: the profile is broken" if broken else ""
