"""libvips, which encodes pictures row by row, and reads what Pillow does not, or with fewer bits: 16-bit colour, and
most kinds of TIFF. Imported here only, when first needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from intsr.arrays import Array
from intsr.runtime.pictures.picture import ImageMetadata

# The networks need the cores; one thread that encodes keeps up with them.
_ENCODING_THREADS = 1
_SYSTEM = "system error: "
_ROWS = 64
_FORMATS = {8: "uchar", 16: "ushort"}


@cache
def vips() -> ModuleType:
    """Import `pyvips`, told to cache no results and to leave the cores alone."""
    # What it logs it also raises; from its own threads it would come as lines on stderr.
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)
    pyvips = import_module("pyvips")
    pyvips.cache_set_max(0)
    pyvips.vips_lib.vips_concurrency_set(_ENCODING_THREADS)
    return pyvips


def problem_from_vips(error: Exception) -> str:
    """Return one line: what the system said where it was the system, else all that libvips said, each thing once."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    systems = [line.removeprefix(_SYSTEM) for line in lines if line.startswith(_SYSTEM) and "Unknown" not in line]
    return systems[0] if systems else "; ".join(dict.fromkeys(lines[1:] or lines))


@dataclass(frozen=True, slots=True)
class Samples:
    """How a file holds its pixels."""

    # Width and height.
    size: tuple[int, int]
    # The first channels: 1, 3, or 4 of inks; each of 8 or 16 bits.
    colours: int
    bits: int
    # Which channel is the transparency.
    alpha: int | None = None
    # Turns rows of inks, (h, W, 4) uint8, into (h, W, 3) uint8.
    to_rgb: Callable[[Array], Array] | None = None
    # Of a TIFF, the number of the directory, and which of those inside it; None for itself.
    page: int | None = None
    sub: int | None = None


def read_samples(file: BinaryIO, samples: Samples) -> tuple[Array, Array | None]:
    """Read (H, W, 3) or (H, W), uint16, or uint8 of 8 bits and of inks, and the alpha (H, W).

    Not turned upright. Colours that were multiplied by their alpha come as they were before. Raises OSError.
    """
    shape = (samples.size[1], samples.size[0])
    dtype = np.uint8 if samples.bits == 8 or samples.to_rgb is not None else np.uint16
    pixels = np.empty(shape if samples.colours == 1 else (*shape, 3), dtype)
    alpha = None if samples.alpha is None else np.empty(shape, dtype)
    if problem := _problem_of_filling(pixels, alpha, file, samples):
        raise OSError(problem)
    return pixels, alpha


def _problem_of_filling(pixels: Array, alpha: Array | None, file: BinaryIO, samples: Samples) -> str:
    """Fill the arrays, and return what is wrong with the file. As text: an exception would keep this frame."""
    library, (width, height) = vips(), samples.size
    least_bands = samples.colours if samples.alpha is None else max(samples.colours, samples.alpha + 1)
    settings = {"page": samples.page, "subifd": samples.sub}
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        # By descriptor: libvips takes names in UTF-8 only, and what stands in brackets in them for options.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        source = library.Source.new_from_descriptor(file.fileno())
        image = library.Image.new_from_source(source, "", access="sequential", fail_on="error", **settings)
        found, expected = (image.width, image.height, image.format), (width, height, _FORMATS[samples.bits])
        if found != expected or image.bands < least_bands:
            return f"{image.bands} channels of {found}, expected {expected}"
        region = library.Region.new(image)
        dtype = np.uint8 if samples.bits == 8 else np.uint16
        for top in range(0, height, _ROWS):
            count = min(_ROWS, height - top)
            rows: Array = np.frombuffer(region.fetch(0, top, width, count), dtype).reshape(count, width, -1)
            if samples.to_rgb is not None and samples.bits == 16:
                # To the nearest of 8 bits.
                rows = ((rows.astype(np.uint32) + 128) // 257).astype(np.uint8)
            if alpha is not None:
                alpha[top : top + count] = rows[..., samples.alpha]
            colours = rows[..., 0] if samples.colours == 1 else rows[..., : samples.colours]
            pixels[top : top + count] = colours if samples.to_rgb is None else samples.to_rgb(colours)
    except library.Error as error:
        return problem_from_vips(error)
    return ""


def save_by_vips(image: Any, path: Path, save: str, metadata: ImageMetadata, **settings: Any) -> None:
    """Run one of libvips' savers. By descriptor: it takes names in UTF-8 only, and brackets in them for options."""
    # Flags of what there is: else it writes an EXIF of its own, in which JPEG has the resolution.
    found = (metadata.exif or metadata.dpi, metadata.xmp, metadata.iptc, metadata.icc_profile)
    keep = sum(flag for flag, data in zip((1, 2, 4, 8), found, strict=True) if data)
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    try:
        getattr(image, save)(vips().Target.new_to_descriptor(descriptor), keep=keep, **settings)
    finally:
        os.close(descriptor)
