"""One encoder for each format: those that libvips runs row by row, and those that need the whole picture."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL import features as pillow_features

from intsr.arrays import Array
from intsr.runtime.pictures.embed import Beginning, jpeg_beginning, png_beginning
from intsr.runtime.pictures.formats.png import density_of_chunks
from intsr.runtime.pictures.formats.tiff import append_directory, check_tiff
from intsr.runtime.pictures.formats.write_formats import WriteFormat, profile_fits
from intsr.runtime.pictures.metadata.fields import ImageMetadata
from intsr.runtime.pictures.metadata.resolution import dpi_from_density
from intsr.runtime.pictures.row_pipe import PNG_COLOUR_TYPES
from intsr.runtime.pictures.vips import problem_from_vips, vips

# All filters tried on every row. libvips' zlib takes half the time of the common one for about the same size.
_PNG = {"compression": 4, "filter": "all", "keep": "none"}
_JPEG = {"subsample_mode": "off", "keep": "none"}
_TIFF = {"compression": "deflate", "level": 4, "predictor": "horizontal", "keep": "none"}
# Offsets of 32 bits reach to 4 GiB; deflate can make noise a little longer than it was.
_BIG_TIFF_BYTES = 3 << 30
_AVIF = {"subsampling": "4:4:4"}
_ENDINGS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


def encode_stream(source: int, path: Path, target: WriteFormat, metadata: ImageMetadata, quality: int | None) -> None:
    """source: descriptor of a PNG stream. Raises OSError, ValueError, struct.error."""
    if problem := _problem_of_encoding(source, path, target, metadata, quality):
        raise OSError(problem)


def _problem_of_encoding(
    source: int, path: Path, target: WriteFormat, metadata: ImageMetadata, quality: int | None
) -> str:
    """What libvips said, or nothing. As text: an exception would keep this frame, and with it the files open."""
    library = vips()
    try:
        pipe = library.Source.new_from_descriptor(source)
        image = library.Image.pngload_source(pipe, access="sequential", fail_on="truncated", unlimited=True)
        if target.pillow == "TIFF":
            big = image.width * image.height * image.bands * (2 if image.format == "ushort" else 1) > _BIG_TIFF_BYTES
            _encode_tiff(path, image, big)
            append_directory(path, metadata)
        elif target.pillow == "PNG":
            _encode_behind(path, image, "pngsave", _PNG, lambda sample: png_beginning(sample, metadata))
        else:
            settings = {**_JPEG, "Q": quality}
            _encode_behind(path, image, "jpegsave", settings, lambda sample: jpeg_beginning(sample, metadata))
    except library.Error as error:
        return problem_from_vips(error)
    return ""


def _encode_tiff(path: Path, image: Any, big: bool) -> None:
    # By descriptor: libvips takes names in UTF-8 only, and what stands in brackets in them for options.
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    try:
        image.tiffsave_target(vips().Target.new_to_descriptor(descriptor), bigtiff=big, **_TIFF)
    finally:
        os.close(descriptor)


def _encode_behind(
    path: Path, image: Any, save: str, settings: dict[str, Any], beginning: Callable[[bytes], Beginning]
) -> None:
    library = vips()
    # What this encoder begins with, learned from one pixel.
    pixel = library.Image.black(1, 1, bands=image.bands).cast(image.format).copy(interpretation=image.interpretation)
    sample = getattr(pixel, f"{save}_buffer")(**settings)
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)

    def encode(descriptor: int) -> None:
        getattr(image, f"{save}_target")(library.Target.new_to_descriptor(descriptor), **settings)

    try:
        beginning(sample).write(descriptor, encode)
    finally:
        os.close(descriptor)


def encode_whole(
    pixels: Array, path: Path, target: WriteFormat, metadata: ImageMetadata, quality: int | None
) -> None:
    """pixels: (H, W, C) uint8. Raises OSError, ValueError."""
    if target.pillow == "AVIF" and not pillow_features.check("avif"):
        raise OSError("this Pillow has no AVIF")
    settings: dict[str, Any] = {} if quality is None else {"quality": quality}
    if target.pillow == "AVIF":
        settings |= _AVIF
    if target.pillow != "BMP":
        icc_profile = metadata.icc_profile if profile_fits(metadata.icc_profile, target) else b""
        found = {"exif": metadata.exif, "icc_profile": icc_profile, "xmp": metadata.xmp}
        settings |= {key: value for key, value in found.items() if value}
    elif density := density_of_chunks(metadata.png_chunks):
        settings["dpi"] = dpi_from_density(density)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(path, format=target.pillow, **settings)


def check_written(path: Path, target: WriteFormat, size: tuple[int, int], channels: int, bits: int) -> None:
    """Opened again: is all of it there? size: (width, height).

    Raises OSError, ValueError, SyntaxError, struct.error.
    """
    if target.pillow == "TIFF":
        check_tiff(path, size, channels, bits)
        return
    # The format's own reader: Image.open would apply the pixel limit, which is meant for strangers' files.
    Image.init()
    factory, _ = Image.OPEN[target.pillow]
    with path.open("rb") as file, factory(file, str(path)) as written:
        if written.size != size:
            raise ValueError(f"the written file has {written.size} pixels, not {size}")
        # The others have no grey, or leave out transparency where there is none. Of 16 bits Pillow says little.
        if target.pillow == "JPEG" and len(written.getbands()) != channels:
            raise ValueError(f"the written file has {len(written.getbands())} channels, not {channels}")
        written.verify()
    _check_ends(path, target, channels, bits)


def _check_ends(path: Path, target: WriteFormat, channels: int, bits: int) -> None:
    with path.open("rb") as file:
        head = file.read(26)
        file.seek(-8, os.SEEK_END)
        whole = file.read().endswith(_ENDINGS.get(target.pillow, b""))
        if target.pillow == "WEBP":
            whole = struct.unpack("<I", head[4:8])[0] + 8 == file.tell()
        elif target.pillow == "BMP":
            whole = struct.unpack("<I", head[2:6])[0] == file.tell()
    if not whole:
        raise ValueError("the written file ends early")
    if target.pillow == "PNG" and tuple(head[24:]) != (bits, PNG_COLOUR_TYPES[channels]):
        raise ValueError(f"the written file has the pixel format {tuple(head[24:])}")
