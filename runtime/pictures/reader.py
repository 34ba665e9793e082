"""Read pictures, broken ones included: what is lost of them, and would be missed, is an error or a note."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image

from intsr import memory
from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime.pictures.arrays import note_of_broken_profile, note_of_other_profile, turned
from intsr.runtime.pictures.formats.registry import EXPECTED, HEAD_BYTES, format_from_head, format_from_name
from intsr.runtime.pictures.picture import LoadedImage, PictureHeader
from intsr.runtime.pictures.pillow import PictureFile, has_too_many_pixels

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


def read_header(path: Path) -> PictureHeader:
    """Read what a file says of its picture; nothing is decoded. Its content decides, not its name.

    Raises ImageError.
    """
    with _broken_as_image_error(path), PictureFile(path) as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        header = format_from_head(path, head).read_header(path, file)
        if has_too_many_pixels(header.width_px, header.height_px):
            raise Image.DecompressionBombError
    return header


def read_image(picture: Path | PictureHeader) -> LoadedImage:
    """Decode a picture, whose header may have been read before.

    Raises ImageError; OutOfMemoryError where the header promises more than the free memory holds.
    """
    header = picture if isinstance(picture, PictureHeader) else read_header(picture)
    with _broken_as_image_error(header.path):
        _check_memory(header)
        loaded = _with_fitting_profile(format_from_name(header.format).decode(header))
    if header.orientation == 1:
        return loaded
    alpha = None if loaded.alpha is None else turned(loaded.alpha, header.orientation)
    return replace(loaded, pixels=turned(loaded.pixels, header.orientation), alpha=alpha)


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


def _check_memory(header: PictureHeader) -> None:
    free = memory.free_bytes()
    if free is not None and header.decode_bytes > free:
        size = f"{header.width_px}x{header.height_px} pixels"
        got = f"{size} need {header.decode_bytes >> 20} MiB, {free >> 20} MiB are free"
        raise OutOfMemoryError(header.path, got, fix="cut the picture into parts first")


def _with_fitting_profile(loaded: LoadedImage) -> LoadedImage:
    """Drop a profile of colours that the pixels do not have, or one that no writer would take."""
    profile = loaded.metadata.icc_profile
    note = note_of_other_profile(profile, loaded.pixels.ndim == 2) or note_of_broken_profile(profile)
    if not note:
        return loaded
    return replace(loaded, metadata=replace(loaded.metadata, icc_profile=b""), notes=(*loaded.notes, note))
