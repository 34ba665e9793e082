"""Write a picture that comes in bands of rows: whole or not at all, and never all of it in memory of this process.

Rows go to a temporary file without a name, which is then mapped: libvips resizes and encodes as it reads from there.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.files import atomic_path, check_free_space
from intsr.runtime.pictures.formats.registry import FORMATS, HEAD_BYTES, format_from_path
from intsr.runtime.pictures.metadata import exif_for_size, xmp_for_size
from intsr.runtime.pictures.picture import ImageMetadata, PictureFile, PictureFormat
from intsr.runtime.pictures.vips import problem_from_vips, vips

# What encoders raise, and what is raised when the written file is opened again.
_UNWRITABLE = (OSError, ValueError, SyntaxError, struct.error)
NO_METADATA = ImageMetadata()
# What EXIF says of a picture whose resolution is not known. Source: EXIF 3.0, 4.6.5.
_UNKNOWN_DPI = (72.0, 72.0)
_MM_AN_INCH = 25.4
# So many are worth a look at the disk first.
_LARGE_BYTES = 256 << 20
# Rows of an array that are interleaved with their transparency at a time.
_ROWS = 256


@dataclass(slots=True, kw_only=True, eq=False)
class PictureWriter:
    """Takes the rows of one picture from top to bottom; `open_writer` makes it."""

    path: Path
    format: PictureFormat
    # Of the rows, (H, W, C) with transparency; and of the file, (width, height).
    shape: tuple[int, int, int]
    size: tuple[int, int]
    dtype: np.dtype
    metadata: ImageMetadata
    quality: int | None
    # Where rows wait, and how many do.
    file: IO[bytes]
    count: int = 0

    def write(self, rows: Array) -> None:
        """Take rows (h, W) of one channel or (h, W, C), transparency last, in the picture's dtype.

        Raises ImageError: other rows than announced, or no room for them.
        """
        rows = rows[..., None] if rows.ndim == 2 else rows
        if rows.ndim != 3 or rows.shape[1:] != self.shape[1:] or rows.dtype != self.dtype:
            expected = f"rows of {self.shape[1:]} {self.dtype}"
            raise ImageError(self.path, f"rows of {rows.shape[1:]} {rows.dtype}", expected)
        self.count += len(rows)
        if self.count > self.shape[0]:
            raise ImageError(self.path, f"{self.count} rows", f"{self.shape[0]}")
        with _unwritable_as_image_error(self.path):
            self.file.write(np.ascontiguousarray(rows).data)

    def save(self, temporary: Path) -> None:
        """Encode all rows into a file, and look whether it is whole. Raises ImageError."""
        if self.count != self.shape[0]:
            raise ImageError(self.path, f"{self.count} rows", f"{self.shape[0]}")
        with _unwritable_as_image_error(self.path):
            self.file.flush()
            if problem := self._problem_of_saving(temporary):
                raise OSError(problem)
            check_written(temporary, self)

    def _problem_of_saving(self, temporary: Path) -> str:
        """Save, and return what libvips said against it. As text: an exception would keep the file open."""
        try:
            rows = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
            image = self._image(rows)
            if hasattr(mmap, "MADV_DONTNEED"):
                # Rows that have been read need not stay in memory: should they be asked for again, the file has them.
                image.set_progress(True)
                image.signal_connect("eval", lambda image, progress: rows.madvise(mmap.MADV_DONTNEED))
            self.format.save(image, temporary, self.metadata, self.quality)
        except vips().Error as error:
            return problem_from_vips(error)
        return ""

    def _image(self, rows: mmap.mmap) -> Any:
        """Return a libvips image of the file's size, with the metadata in its fields."""
        height, width, channels = self.shape
        library, metadata, is_16_bit = vips(), self.metadata, self.dtype.itemsize == 2
        image = library.Image.new_from_memory(rows, width, height, channels, "ushort" if is_16_bit else "uchar")
        kind = ("grey16" if is_16_bit else "b-w") if channels < 3 else ("rgb16" if is_16_bit else "srgb")
        x, y = (side / _MM_AN_INCH for side in metadata.dpi or _UNKNOWN_DPI)
        image = image.copy(interpretation=kind, xres=x, yres=y)
        if self.size != (width, height):
            image = _resized(image, self.size).copy(xres=x, yres=y)
        for field in ("exif", "xmp", "iptc", "icc_profile"):
            if data := getattr(metadata, field):
                image.set_type(library.GValue.blob_type, f"{field.replace('_', '-')}-data", data)
        return image


def _resized(image: Any, size: tuple[int, int]) -> Any:
    return image.resize(size[0] / image.width, vscale=size[1] / image.height, kernel="lanczos3")


def resized_pixels(pixels: Array, size: tuple[int, int]) -> Array:
    """Return (H, W, 3) uint8 or uint16 as (height, width, 3): what a file written with `resize_to` would hold."""
    if pixels.shape[:2] == size[::-1]:
        return pixels
    height, width, channels = pixels.shape
    is_16_bit = pixels.dtype.itemsize == 2
    kind = "ushort" if is_16_bit else "uchar"
    image = vips().Image.new_from_memory(np.ascontiguousarray(pixels).data, width, height, channels, kind)
    resized = _resized(image.copy(interpretation="rgb16" if is_16_bit else "srgb"), size)
    return np.frombuffer(resized.write_to_memory(), pixels.dtype).reshape(size[1], size[0], channels)


def check_written(path: Path, picture: PictureWriter) -> None:
    """Open the file again: is all of it there, and is it what it should be?

    Raises OSError, ValueError, SyntaxError, struct.error, ImageError.
    """
    with PictureFile(path) as file:
        head = file.read(HEAD_BYTES)
        size_bytes = file.seek(0, 2)
        file.seek(-8, 2)
        if not picture.format.recognizes(head) or not picture.format.is_whole(head, file.read(), size_bytes):
            raise ValueError("the written file ends early")
        file.seek(0)
        try:
            header = picture.format.read_header(path, file)
        except Image.DecompressionBombError:
            # Pillow's reader of WebP asks for no more than it takes from strangers.
            return
    found, expected = (header.width_px, header.height_px, header.bits), (*picture.size, picture.dtype.itemsize * 8)
    if found != expected:
        raise ValueError(f"the written file has {found}, not {expected}")


@contextmanager
def _unwritable_as_image_error(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNWRITABLE as error:
        raise ImageError(path, f"cannot be written ({error})") from error


def check_pixels_fit(width_px: int, height_px: int, channels: int, bits: int, output: Path) -> None:
    """Before anything is decoded: can the format of `output` hold pixels of these sides?

    channels: 1 or 3, and one more for transparency, which `check_alpha_fits` asks for. Raises ImageError.
    """
    target = format_from_path(output)
    got, fix, side_px = f"the picture would be {width_px}x{height_px}", "write a .png", max(width_px, height_px)
    if side_px > target.max_side_px:
        other = next((item.suffixes[0] for item in FORMATS if side_px <= item.max_side_px), ".tif")
        raise ImageError(output, got, f"sides up to {target.max_side_px} in {target.name}", f"write a {other}")
    if bits == 16 and not target.holds_16_bits:
        kind = "grey" if channels < 3 else "colour"
        raise ImageError(output, f"16-bit {kind}", f"8 bits in {target.name}", "write a .png or .tif")
    if target.max_bytes is not None and width_px * height_px * channels > target.max_bytes:
        raise ImageError(output, got, f"up to {target.max_bytes} bytes in {target.name}", fix)


def check_alpha_fits(has_alpha: bool, output: Path) -> None:
    """Raises ImageError where the picture is transparent and the format of `output` cannot say so."""
    target = format_from_path(output)
    if has_alpha and not target.holds_alpha:
        raise ImageError(output, "the picture is transparent", f"an opaque one in {target.name}", "write a .png")


def notes_for_output(metadata: ImageMetadata, output: Path) -> tuple[str, ...]:
    """Return one note that names what of the metadata the file will not have, for people; none where it has all."""
    return format_from_path(output).kept(metadata)[1]


@contextmanager
def open_writer(
    path: Path,
    width_px: int,
    height_px: int,
    channels: int,
    dtype: DTypeLike,
    *,
    has_alpha: bool = False,
    metadata: ImageMetadata = NO_METADATA,
    resize_to: tuple[int, int] | None = None,
    quality: int | None = None,
    overwrite: bool = True,
) -> Iterator[PictureWriter]:
    """Open a picture file in the format that its suffix names; when the context is left, it is there and checked.

    width_px, height_px: of the rows that are going to be written. channels: 1 or 3, without transparency. dtype:
    uint8 or uint16. metadata: sizes in its EXIF and XMP become those of the file. resize_to: (width, height) of the
    file, by Lanczos. quality: 1 to 100, for JPEG, WebP and AVIF; None: the format's own.

    On the disk of `path`, the rows take their size until the file is there. WebP, AVIF and BMP hold the picture in
    memory while they encode it (`PictureFormat.encoder_bytes`). Raises ImageError where the format cannot hold the
    picture, where rows are missing and where the file cannot be written; UsageError, OutputExistsError as
    `atomic_path`, UsageError also where the disk has no room for the rows. After any exception `path` is as it was.
    """
    target, kind = format_from_path(path), np.dtype(dtype)
    size, all_channels = resize_to or (width_px, height_px), channels + has_alpha
    check_pixels_fit(*size, all_channels, kind.itemsize * 8, path)
    check_alpha_fits(has_alpha, path)
    kept = target.kept(metadata)[0]
    kept = replace(kept, exif=exif_for_size(kept.exif, size), xmp=xmp_for_size(kept.xmp, size))
    if quality is None or target.default_quality is None:
        quality = target.default_quality
    rows_bytes = height_px * width_px * all_channels * kind.itemsize
    if rows_bytes > _LARGE_BYTES:
        # Before anything is computed for it.
        check_free_space(path.parent, rows_bytes)
    with atomic_path(path, overwrite) as temporary, tempfile.TemporaryFile(dir=path.parent) as file:
        writer = PictureWriter(
            path=path,
            format=target,
            shape=(height_px, width_px, all_channels),
            size=size,
            dtype=kind,
            metadata=kept,
            quality=quality,
            file=file,
        )
        yield writer
        writer.save(temporary)


def write_image(
    path: Path, pixels: Array, alpha: Array | None, metadata: ImageMetadata, quality: int | None = None
) -> None:
    """Write an array, (H, W, 3) or (H, W), uint8 or uint16, and its alpha, (H, W) of the same dtype.

    quality: see `open_writer`. Raises ImageError; then `path` is as it was.
    """
    height_px, width_px = pixels.shape[:2]
    channels, has_alpha = 1 if pixels.ndim == 2 else pixels.shape[2], alpha is not None
    with open_writer(
        path, width_px, height_px, channels, pixels.dtype, has_alpha=has_alpha, metadata=metadata, quality=quality
    ) as writer:
        for top in range(0, height_px, _ROWS):
            rows = pixels[top : top + _ROWS]
            writer.write(rows if alpha is None else np.dstack([rows, alpha[top : top + _ROWS]]))
