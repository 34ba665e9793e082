"""Pixels that libvips reads, and Pillow not, or with fewer bits: 16-bit colour, and most kinds of TIFF."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from intsr.arrays import Array
from intsr.runtime.pictures.arrays import is_opaque
from intsr.runtime.pictures.vips import problem_from_vips, vips

_ROWS = 64
_FORMATS = {8: "uchar", 16: "ushort"}


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
    """Read (H, W, 3) or (H, W), uint16, or uint8 of 8 bits and of inks, and the alpha (H, W), None where opaque.

    Not turned upright. Colours that were multiplied by their alpha come as they were before. Raises OSError.
    """
    shape = (samples.size[1], samples.size[0])
    dtype = np.uint8 if samples.bits == 8 or samples.to_rgb is not None else np.uint16
    pixels = np.empty(shape if samples.colours == 1 else (*shape, 3), dtype)
    alpha = None if samples.alpha is None else np.empty(shape, dtype)
    if problem := _problem_of_filling(pixels, alpha, file, samples):
        raise OSError(problem)
    return pixels, None if alpha is None or is_opaque(alpha) else alpha


def _problem_of_filling(pixels: Array, alpha: Array | None, file: BinaryIO, samples: Samples) -> str:
    """Fill the arrays, and return what is wrong with the file. As text: an exception would keep this frame."""
    library, (width, height) = vips(), samples.size
    least_bands = samples.colours if samples.alpha is None else max(samples.colours, samples.alpha + 1)
    settings = {} if samples.page is None else {"page": samples.page}
    settings |= {} if samples.sub is None else {"subifd": samples.sub}
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
            rows = np.frombuffer(region.fetch(0, top, width, count), dtype).reshape(count, width, -1)
            if samples.to_rgb is not None and samples.bits == 16:
                rows = _of_8_bits(rows)
            if alpha is not None:
                alpha[top : top + count] = rows[..., samples.alpha]
            colours = rows[..., 0] if samples.colours == 1 else rows[..., : samples.colours]
            pixels[top : top + count] = colours if samples.to_rgb is None else samples.to_rgb(colours)
    except library.Error as error:
        return problem_from_vips(error)
    return ""


def _of_8_bits(values: Array) -> Array:
    """uint16 -> uint8, to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
