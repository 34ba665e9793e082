"""Read pictures, broken ones included: what is lost of them, and would be missed, is an error or a note."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from intsr import memory
from intsr.arrays import Array
from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime.pictures.arrays import (
    COLOUR_MODES,
    GREY_16_MODES,
    GREY_MODES,
    arrays_from_image,
    note_of_other_profile,
    rgb_from_cmyk,
    turned,
)
from intsr.runtime.pictures.depth16 import Samples, read_samples
from intsr.runtime.pictures.formats.tiff_file import TiffFile, tiff_from_path
from intsr.runtime.pictures.formats.tiff_pages import NO_SUB_DIRECTORY
from intsr.runtime.pictures.header import (
    READ_FORMATS,
    ImageInfo,
    broken_as_image_error,
    info_from_image,
    notes_from_image,
    opened,
    peak_16,
    scale_transparent_level,
    stored_modes,
    views_of_image,
)
from intsr.runtime.pictures.mend import patches_of_png, tail_of_jpeg
from intsr.runtime.pictures.metadata.beside import beside_from_image, chunks_from_density
from intsr.runtime.pictures.metadata.fields import (
    ORIENTATION,
    ImageMetadata,
    adopt_raw_profile,
    directory_from_image,
    orientation_from_exif,
    upright_metadata,
    xmp_from_image,
)
from intsr.runtime.pictures.metadata.xmp import GAIN_MAP_NOTE, notes_from_xmp

__all__ = ["READ_FORMATS", "ImageInfo", "LoadedImage", "read_image", "read_info"]


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
    with broken_as_image_error(path):
        tiff = tiff_from_path(path)
        if tiff is not None:
            return tiff.info
        with opened(path, patches_of_png(path)[0]) as image:
            return info_from_image(path, image, turned_later=True)


def read_image(path: Path, upscale_factor: int = 1) -> LoadedImage:
    """Decode a picture. upscale_factor: what sizes in its EXIF are multiplied by.

    Raises ImageError; OutOfMemoryError where the header promises more than the free memory holds.
    """
    with broken_as_image_error(path):
        tiff = tiff_from_path(path)
        if tiff is not None:
            loaded, orientation = _read_tiff(path, tiff, upscale_factor)
        else:
            loaded, orientation = _read_by_pillow(path, upscale_factor)
    return _upright(_with_fitting_profile(loaded), orientation)


def _read_by_pillow(path: Path, upscale_factor: int, tail: bytes = b"") -> tuple[LoadedImage, int]:
    """As stored, and the orientation. tail: what is to follow the end of the file."""
    patches, patched = patches_of_png(path)
    with opened(path, patches, tail) as image:
        info = info_from_image(path, image, turned_later=False)
        _check_mode(path, image)
        _check_memory(path, info)
        notes = (*patched, *notes_from_image(path, image, info))
        scale_transparent_level(image)
        try:
            image.load()
        except OSError:
            if tail or image.format != "JPEG" or not (tail := tail_of_jpeg(path)):
                raise
        else:
            return _loaded_by_pillow(path, image, info, notes, upscale_factor)
    loaded, orientation = _read_by_pillow(path, upscale_factor, tail)
    note = "the end mark of the JPEG is missing; the picture is whole"
    return replace(loaded, notes=(*loaded.notes, note)), orientation


def _loaded_by_pillow(
    path: Path, image: Image.Image, info: ImageInfo, notes: tuple[str, ...], upscale_factor: int
) -> tuple[LoadedImage, int]:
    """Of a decoded image. See above."""
    metadata, orientation, more = _metadata(path, image, upscale_factor)
    if (views := views_of_image(image)) > 1 and GAIN_MAP_NOTE not in more:
        more = (*more, f"only the first of {views} pictures in the file was read")
    if _is_deep(info):
        # Pillow's copy of the pixels goes.
        image.close()
        size = (info.width_px, info.height_px)
        pixels, alpha = read_samples(
            path, Samples(size, info.channels, 16, info.channels if info.has_alpha else None)
        )
        return LoadedImage(pixels, alpha, metadata, (*notes, *more)), orientation
    pixels, alpha, other = arrays_from_image(image, info.has_alpha)
    if image.format == "BMP" and alpha is not None and not alpha.any():
        # Some programs announce transparency, and leave it empty.
        alpha, other = None, (*other, "its transparency is 0 everywhere, and was taken for none")
    if image.mode == "CMYK":
        # The profile was of the inks.
        metadata = replace(metadata, icc_profile=b"")
    return LoadedImage(pixels, alpha, metadata, (*notes, *more, *other)), orientation


def _read_tiff(path: Path, tiff: TiffFile, upscale_factor: int) -> tuple[LoadedImage, int]:
    """As stored, and the orientation."""
    kind, orientation = tiff.kind, tiff.orientation
    _check_memory(path, tiff.info)
    other: tuple[str, ...] = ()
    if kind.by_pillow:
        pixels, alpha, other = _tiff_by_pillow(path, tiff)
        # Pillow has turned it.
        orientation = 1
    else:
        to_rgb = None
        if kind.inks:
            convert, note = rgb_from_cmyk(tiff.icc_profile)
            to_rgb, other = (lambda rows: np.asarray(convert(Image.fromarray(rows, "CMYK")))), (note,)
        sub = None if tiff.page.sub == NO_SUB_DIRECTORY else tiff.page.sub
        samples = Samples(tiff.page.size, kind.colours, kind.bits, kind.alpha, to_rgb, tiff.page.number, sub)
        pixels, alpha = read_samples(path, samples)
    # A profile of inks does not fit what became of them.
    icc_profile = b"" if kind.inks else tiff.icc_profile
    metadata = upright_metadata(tiff.described, icc_profile, tiff.xmp, tiff.size, upscale_factor, tiff.layout.order)
    chunks = chunks_from_density(tiff.density, turned=tiff.orientation >= 5)
    notes = (*tiff.notes, *notes_from_xmp(tiff.xmp), *other)
    return LoadedImage(pixels, alpha, replace(metadata, png_chunks=chunks), notes), orientation


def _tiff_by_pillow(path: Path, tiff: TiffFile) -> tuple[Array, Array | None, tuple[str, ...]]:
    with opened(path, tiff.patches) as image:
        _check_mode(path, image)
        peak = peak_16(stored_modes(image))
        # By what it finds here Pillow turns the picture; more than its own directory may say so.
        image.getexif()[ORIENTATION] = tiff.orientation
        image.load()
        return arrays_from_image(image, tiff.kind.alpha is not None, peak)


def _with_fitting_profile(loaded: LoadedImage) -> LoadedImage:
    """Without a profile of colours that the pixels do not have."""
    note = note_of_other_profile(loaded.metadata.icc_profile, grey=loaded.pixels.ndim == 2)
    if not note:
        return loaded
    return replace(loaded, metadata=replace(loaded.metadata, icc_profile=b""), notes=(*loaded.notes, note))


def _is_deep(info: ImageInfo) -> bool:
    """Whether Pillow would lose something."""
    return info.bits == 16 and (info.mode not in GREY_16_MODES or info.has_alpha)


def _check_mode(path: Path, image: Image.Image) -> None:
    if image.mode not in GREY_MODES + GREY_16_MODES + COLOUR_MODES:
        expected = "grey or colour of 8 or 16 bits"
        raise ImageError(path, f"pixel format {image.mode}", expected, "convert it")


def _check_memory(path: Path, info: ImageInfo) -> None:
    free = memory.free_bytes()
    if free is not None and info.decode_bytes > free:
        got = f"{info.width_px}x{info.height_px} pixels need {info.decode_bytes >> 20} MiB, {free >> 20} MiB are free"
        raise OutOfMemoryError(path, got, fix="cut the picture into parts first")


def _metadata(path: Path, image: Image.Image, upscale_factor: int) -> tuple[ImageMetadata, int, tuple[str, ...]]:
    """Of a decoded image; and its orientation, and notes. What is broken of one costs none of the others."""
    notes: tuple[str, ...] = ()
    adopt_raw_profile(image)
    try:
        orientation = orientation_from_exif(image.getexif())
    except Exception as error:  # Pillow raises many kinds on broken EXIF.
        orientation, notes = 1, (f"EXIF is broken, so the picture may lie on its side ({error})",)
    directory, order, more = directory_from_image(image)
    size = image.size if orientation < 5 else image.size[::-1]
    icc_profile, xmp = image.info.get("icc_profile") or b"", xmp_from_image(image)
    metadata = upright_metadata(directory, icc_profile, xmp, size, upscale_factor, order)
    chunks, segments, others = beside_from_image(path, image, turned=orientation >= 5)
    metadata = replace(metadata, png_chunks=chunks, jpeg_segments=segments)
    return metadata, orientation, tuple(dict.fromkeys((*notes, *more, *notes_from_xmp(xmp), *others)))


def _upright(loaded: LoadedImage, orientation: int) -> LoadedImage:
    if orientation == 1:
        return loaded
    alpha = None if loaded.alpha is None else turned(loaded.alpha, orientation)
    return replace(loaded, pixels=turned(loaded.pixels, orientation), alpha=alpha)
