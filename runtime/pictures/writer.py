"""Write a picture that comes as bands of rows: whole or not at all, and never all of it in memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.files import atomic_path
from intsr.runtime.pictures.encode import check_written, encode_stream, encode_whole
from intsr.runtime.pictures.formats.write_formats import WriteFormat, check_pixels_fit, format_from_path
from intsr.runtime.pictures.metadata.fields import ImageMetadata, metadata_for_size
from intsr.runtime.pictures.resize_rows import RowResizer
from intsr.runtime.pictures.row_pipe import RowFeed

# What encoders raise, and what is raised when the written file is opened again.
_UNWRITABLE = (OSError, ValueError, SyntaxError, struct.error)
NO_METADATA = ImageMetadata()


class _Sink(Protocol):
    """Where rows go: on to the encoder, or into memory until all are there."""

    def put(self, rows: Array) -> None: ...
    def finish(self) -> None: ...
    def stop(self) -> None: ...


class _WholePicture:
    """For encoders that need it. Takes rows (h, W, C)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        path: Path,
        target: WriteFormat,
        metadata: ImageMetadata,
        quality: int | None,
    ) -> None:
        self._pixels = np.empty(shape, np.uint8)
        self._filled = 0
        self._path, self._target, self._metadata, self._quality = path, target, metadata, quality

    def put(self, rows: Array) -> None:
        self._pixels[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def finish(self) -> None:
        encode_whole(self._pixels, self._path, self._target, self._metadata, self._quality)

    def stop(self) -> None:
        """Nothing runs."""


class PictureWriter:
    """Takes the rows of one picture from top to bottom; `open_writer` makes it."""

    def __init__(
        self, path: Path, shape: tuple[int, int, int], dtype: np.dtype, resizer: RowResizer | None, sink: _Sink
    ) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self._resizer, self._sink = resizer, sink
        self._written = 0

    def write(self, rows: Array) -> None:
        """rows: (h, W) for one channel or (h, W, C), transparency last; in the picture's dtype. They are copied.

        Blocks while the encoder is behind. Raises ImageError: other rows than announced, or the encoder failed.
        """
        rows = rows[..., None] if rows.ndim == 2 else rows
        height, width, channels = self._shape
        if rows.ndim != 3 or rows.shape[1:] != (width, channels) or rows.dtype != self._dtype:
            expected = f"rows of {(width, channels)} {self._dtype}"
            raise ImageError(self._path, f"rows of {rows.shape[1:]} {rows.dtype}", expected)
        if self._written + len(rows) > height:
            raise ImageError(self._path, f"{self._written + len(rows)} rows", f"{height}")
        self._written += len(rows)
        with _unwritable_as_image_error(self._path):
            for part in (rows,) if self._resizer is None else self._resizer.put(rows):
                self._sink.put(part)

    def finish(self) -> None:
        """Raises ImageError where rows are missing, or the encoder failed."""
        if self._written != self._shape[0]:
            raise ImageError(self._path, f"{self._written} rows", f"{self._shape[0]}")
        with _unwritable_as_image_error(self._path):
            self._sink.finish()


@contextmanager
def _unwritable_as_image_error(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNWRITABLE as error:
        raise ImageError(path, f"cannot be written ({error})") from error


@contextmanager
def open_writer(
    path: Path,
    width_px: int,
    height_px: int,
    channels: int,
    dtype: DTypeLike,
    has_alpha: bool = False,
    metadata: ImageMetadata = NO_METADATA,
    resize_to: tuple[int, int] | None = None,
    quality: int | None = None,
    overwrite: bool = True,
) -> Iterator[PictureWriter]:
    """A picture file in the format that its suffix names; it is there, synced and checked, when the context is left.

    width_px, height_px: of the rows that are going to be written. channels: 1 or 3, without transparency. dtype:
    uint8 or uint16. metadata: sizes in its EXIF become those of the file. resize_to: (width, height) of the file, by
    Lanczos. quality: 1 to 100, for JPEG, WebP and AVIF; None: the format's own.

    Encoding runs beside the caller, in threads. Memory: 64 MiB and some rows; for WebP, AVIF and BMP the whole
    picture (`WriteFormat.held_bytes`). Raises ImageError where the format cannot hold the picture, where rows are
    missing and where the file cannot be written; UsageError, OutputExistsError as `atomic_path`. After any exception
    `path` is as it was.
    """
    target, kind = format_from_path(path), np.dtype(dtype)
    size, all_channels = resize_to or (width_px, height_px), channels + has_alpha
    check_pixels_fit(*size, all_channels, kind.itemsize * 8, path)
    if has_alpha and not target.alpha:
        raise ImageError(path, "the picture is transparent", f"an opaque one in {target.pillow}", "write a .png")
    quality = target.default_quality if quality is None or target.default_quality is None else quality
    resizer = RowResizer((width_px, height_px), size) if size != (width_px, height_px) else None
    metadata = metadata_for_size(metadata, *size)
    shape = (size[1], size[0], all_channels)
    with atomic_path(path, overwrite) as temporary:
        sink: _Sink
        if target.held_bytes:
            sink = _WholePicture(shape, temporary, target, metadata, quality)
        else:
            with _unwritable_as_image_error(path):
                sink = RowFeed(
                    shape, kind, lambda source: encode_stream(source, temporary, target, metadata, quality)
                )
        try:
            writer = PictureWriter(path, (height_px, width_px, all_channels), kind, resizer, sink)
            yield writer
            writer.finish()
        finally:
            sink.stop()
        with _unwritable_as_image_error(path):
            check_written(temporary, target, size, all_channels, kind.itemsize * 8)
