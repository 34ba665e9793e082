"""16-bit colour, and 16-bit grey with transparency: Pillow keeps 8 bits of them, libvips all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intsr.runtime.image_directory import BROKEN_DIRECTORY, Directory, numbers, read_directory, values
from intsr.runtime.image_pixels import is_opaque
from intsr.runtime.image_tiff import (
    BITS,
    EXTRA_SAMPLES,
    HEIGHT,
    ICC,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    SAMPLES,
    WIDTH,
    XMP,
)
from intsr.runtime.networks import Array
from intsr.runtime.vips import problem_from_vips, vips

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Photometric interpretations: white is 0, which Pillow overlooks and libvips turns round; black is 0; colours.
_NEGATIVE, _GREY, _RGB = 0, 1, 2
_CHANNELS: dict[tuple[int, ...], int] = {(_NEGATIVE,): 1, (_GREY,): 1, (_RGB,): 3}
_UNSIGNED = 1
_ROWS = 64


@dataclass(frozen=True, slots=True)
class DeepTiff:
    """The header of a TIFF with 16 bits a channel. channels: 1 or 3, without transparency. directory: all tags.
    order: of its bytes, `<` or `>`.
    """

    width_px: int
    height_px: int
    channels: int
    has_alpha: bool
    more_frames: bool
    directory: Directory
    order: str
    icc_profile: bytes
    xmp: bytes


def deep_tiff_from_path(path: Path) -> DeepTiff | None:
    """None where the file is no TIFF, or one that Pillow reads as it is. Raises what broken data raises."""
    with path.open("rb") as file:
        if file.read(4) not in _TIFF_STARTS:
            return None
        try:
            directory, layout, following = read_directory(file)
        except BROKEN_DIRECTORY:
            # Pillow forgives more, and says what it does not.
            return None
    bits, colours = set(numbers(directory, BITS)), numbers(directory, PHOTOMETRIC)
    samples, formats = numbers(directory, SAMPLES), set(numbers(directory, SAMPLE_FORMAT))
    channels = _CHANNELS.get(colours, 0)
    if bits != {16} or not channels or formats - {_UNSIGNED}:
        return None
    if samples in ((), (1,)) and colours != (_NEGATIVE,):
        return None
    extra = numbers(directory, EXTRA_SAMPLES)
    has_alpha = (*samples, 1)[0] > channels and (not extra or extra[0] != 0)
    (width,), (height,) = numbers(directory, WIDTH), numbers(directory, HEIGHT)
    icc_profile, xmp = values(directory, ICC), values(directory, XMP)
    return DeepTiff(width, height, channels, has_alpha, following > 0, directory, layout.order, icc_profile, xmp)


def read_deep(path: Path, size: tuple[int, int], channels: int, has_alpha: bool) -> tuple[Array, Array | None]:
    """(H, W, 3) or (H, W) uint16 and the alpha (H, W) uint16, None where opaque; not turned upright.

    size: (width, height). Colours that were multiplied by their alpha come as they were before. Raises OSError.
    """
    shape = (size[1], size[0])
    pixels = np.empty(shape if channels == 1 else (*shape, channels), np.uint16)
    alpha = np.empty(shape, np.uint16) if has_alpha else None
    if problem := _problem_of_filling(pixels, alpha, path):
        raise OSError(problem)
    return pixels, None if alpha is None or is_opaque(alpha) else alpha


def _problem_of_filling(pixels: Array, alpha: Array | None, path: Path) -> str:
    """What is wrong with the file, or nothing. As text: an exception would keep this frame, and the file open."""
    library = vips()
    channels, (height, width) = 1 if pixels.ndim == 2 else pixels.shape[2], pixels.shape[:2]
    try:
        # By descriptor: libvips takes names in UTF-8 only, and what stands in brackets in them for options.
        with path.open("rb") as file:
            source = library.Source.new_from_descriptor(file.fileno())
        image = library.Image.new_from_source(source, "", access="sequential", fail_on="error")
        found, expected = (image.width, image.height, image.format), (width, height, "ushort")
        if found != expected or image.bands < channels + (alpha is not None):
            return f"{image.bands} channels of {found}, expected {expected}"
        region = library.Region.new(image)
        for top in range(0, height, _ROWS):
            count = min(_ROWS, height - top)
            rows = np.frombuffer(region.fetch(0, top, width, count), np.uint16).reshape(count, width, -1)
            if alpha is not None:
                alpha[top : top + count] = rows[..., channels]
            pixels[top : top + count] = rows[..., 0] if channels == 1 else rows[..., :channels]
    except library.Error as error:
        return problem_from_vips(error)
    return ""
