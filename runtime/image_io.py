"""Read pictures, broken ones included: what is lost of them, and would be missed, is an error or a note."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from intsr import memory
from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime.image_beside import beside_from_image, chunks_from_density
from intsr.runtime.image_deep import DeepTiff, deep_tiff_from_path, read_deep
from intsr.runtime.image_density import density_from_resolution
from intsr.runtime.image_header import (
    READ_FORMATS,
    ImageInfo,
    broken_as_image_error,
    info_from_image,
    notes_from_image,
    opened,
    peak_16,
    scale_transparent_level,
    stored_modes,
    too_many_pixels,
)
from intsr.runtime.image_metadata import (
    ImageMetadata,
    directory_from_image,
    orientation_from_directory,
    orientation_from_exif,
    upright_metadata,
    xmp_from_image,
)
from intsr.runtime.image_pixels import COLOUR_MODES, GREY_16_MODES, GREY_MODES, arrays_from_image, turned
from intsr.runtime.image_xmp import notes_from_xmp
from intsr.runtime.networks import Array

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
        deep = deep_tiff_from_path(path)
        if deep is not None:
            return _deep_tiff_info(path, deep)
        with opened(path) as image:
            # Pillow turns a TIFF itself, and says so in its size from the start.
            return info_from_image(path, image, turned_later=image.format != "TIFF")


def read_image(path: Path, upscale_factor: int = 1) -> LoadedImage:
    """Decode a picture. upscale_factor: what sizes in its EXIF are multiplied by.

    Raises ImageError; OutOfMemoryError where the header promises more than the free memory holds.
    """
    with broken_as_image_error(path):
        deep = deep_tiff_from_path(path)
        if deep is not None:
            loaded, orientation = _read_deep_tiff(path, deep, upscale_factor)
        else:
            loaded, orientation = _read_by_pillow(path, upscale_factor)
    return _upright(loaded, orientation)


def _read_by_pillow(path: Path, upscale_factor: int) -> tuple[LoadedImage, int]:
    """As stored, and the orientation."""
    with opened(path) as image:
        info = info_from_image(path, image, turned_later=False)
        _check_mode(path, image)
        _check_memory(path, info)
        notes, peak = notes_from_image(path, image, info), peak_16(stored_modes(image))
        scale_transparent_level(image)
        image.load()
        metadata, orientation, more = _metadata(path, image, upscale_factor)
        if not _is_deep(info):
            pixels, alpha, other = arrays_from_image(image, info.has_alpha, peak)
            if image.format == "BMP" and alpha is not None and not alpha.any():
                # Some programs announce transparency, and leave it empty.
                alpha, other = None, (*other, "its transparency is 0 everywhere, and was taken for none")
            if image.mode == "CMYK":
                # The profile was of the inks.
                metadata = replace(metadata, icc_profile=b"")
            return LoadedImage(pixels, alpha, metadata, (*notes, *more, *other)), orientation
        # Pillow's copy of the pixels goes.
        image.close()
    pixels, alpha = read_deep(path, (info.width_px, info.height_px), info.channels, info.has_alpha)
    return LoadedImage(pixels, alpha, metadata, (*notes, *more)), orientation


def _deep_tiff_info(path: Path, deep: DeepTiff) -> ImageInfo:
    if Image.MAX_IMAGE_PIXELS is not None and deep.width_px * deep.height_px > 2 * Image.MAX_IMAGE_PIXELS:
        raise too_many_pixels(path)
    sides = (deep.width_px, deep.height_px)
    width_px, height_px = sides if orientation_from_directory(deep.directory) < 5 else sides[::-1]
    mode = ("LA" if deep.has_alpha else "L") if deep.channels == 1 else ("RGBA" if deep.has_alpha else "RGB")
    return ImageInfo(width_px, height_px, f"{mode};16", deep.has_alpha, 16, deep.channels)


def _read_deep_tiff(path: Path, deep: DeepTiff, upscale_factor: int) -> tuple[LoadedImage, int]:
    """As stored, and the orientation."""
    info, sides = _deep_tiff_info(path, deep), (deep.width_px, deep.height_px)
    _check_memory(path, info)
    pixels, alpha = read_deep(path, sides, deep.channels, deep.has_alpha)
    size = (info.width_px, info.height_px)
    metadata = upright_metadata(deep.directory, deep.icc_profile, deep.xmp, size, upscale_factor, deep.order)
    orientation = orientation_from_directory(deep.directory)
    chunks = chunks_from_density(density_from_resolution(deep.directory), turned=orientation >= 5)
    frames = ("only the first of several frames was read",) if deep.more_frames else ()
    notes = (*frames, *notes_from_xmp(deep.xmp))
    return LoadedImage(pixels, alpha, replace(metadata, png_chunks=chunks), notes), orientation


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
    try:
        orientation = orientation_from_exif(image.getexif())
    except Exception as error:  # Pillow raises many kinds on broken EXIF.
        orientation, notes = 1, (f"EXIF is broken, so the picture may lie on its side ({error})",)
    directory, order, more = directory_from_image(path, image)
    size = image.size if orientation < 5 else image.size[::-1]
    icc_profile, xmp = image.info.get("icc_profile") or b"", xmp_from_image(image)
    metadata = upright_metadata(directory, icc_profile, xmp, size, upscale_factor, order)
    chunks, segments, others = beside_from_image(path, image, directory, turned=orientation >= 5)
    metadata = replace(metadata, png_chunks=chunks, jpeg_segments=segments)
    return metadata, orientation, tuple(dict.fromkeys((*notes, *more, *notes_from_xmp(xmp), *others)))


def _upright(loaded: LoadedImage, orientation: int) -> LoadedImage:
    if orientation == 1:
        return loaded
    alpha = None if loaded.alpha is None else turned(loaded.alpha, orientation)
    return replace(loaded, pixels=turned(loaded.pixels, orientation), alpha=alpha)
