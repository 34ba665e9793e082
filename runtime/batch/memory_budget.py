"""What a picture will take before it is decoded, and the tile that fits into what there is.

    process = engine (resident once open, and what an inference takes beyond that)
            + input picture + rows of tiles in work + what the encoder of the file holds

Only the input picture grows with its area, and so does the encoder's share where a format cannot be written in rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intsr import memory
from intsr.errors import OutOfMemoryError, UsageError
from intsr.memory import resident_bytes
from intsr.runtime.color_fix.adain import HELD_BYTES
from intsr.runtime.pictures.reader import ImageInfo
from intsr.runtime.pictures.write_array import format_from_path
from intsr.runtime.tiles.blend import BAND_BYTES, LEAST_BAND_ROWS

if TYPE_CHECKING:
    from intsr.runtime.upscaler import Upscaler

# Bands under way at once: handed over, waiting, in the colour fix (with its differences and their copy), rounded.
_BANDS_UNDER_WAY = 6
# Of the encoder: rows that it may be behind (of bytes), and what it takes for any picture, its queue included.
_ENCODER_ROWS = 256
_ENCODER_BYTES = 80 << 20
_SAFETY = 1.1
_SIZE = re.compile(r"(?P<number>\d{1,18}(\.\d{1,9})?)\s*(?P<unit>[KMGT])?(?P<suffix>I?B)?")


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """limit_bytes: what the whole process may have resident; None for what the machine has free."""

    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.limit_bytes is not None and self.limit_bytes <= 0:
            raise UsageError("--memory", f"{self.limit_bytes} bytes", "more than 0")

    def allowed_bytes(self) -> int | None:
        """For the whole process, what it has already included; None where nobody says."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        free = memory.free_bytes()
        return None if free is None else free + resident_bytes()

    def fits(self, needed_bytes: int) -> bool:
        allowed = self.allowed_bytes()
        return allowed is None or needed_bytes <= allowed

    def check_picture(
        self, upscaler: Upscaler, info: ImageInfo, size: tuple[int, int], output: Path, color_fix: str | None = None
    ) -> None:
        """size: of the output file, (width, height) in pixels. Raises OutOfMemoryError."""

        def needed(tile_px: int) -> int:
            picture = picture_parts(upscaler, info, size, output, color_fix, tile_px).total
            return upscaler.resident_bytes_at(tile_px) + picture

        if self.fits(needed(upscaler.tile_px)):
            return
        got = f"{size[0]}x{size[1]} pixels out need about {needed(upscaler.tile_px) >> 20} MiB"
        allowed = f"at most {(self.allowed_bytes() or 0) >> 20} MiB"
        smaller = sorted((tile for tile in upscaler.tile_sizes if tile < upscaler.tile_px), reverse=True)
        fitting = next((tile for tile in smaller if self.fits(needed(tile))), None)
        least_bytes = upscaler.resident_bytes_at(min(upscaler.tile_sizes))
        if fitting is not None:
            fix = f"give --tile {fitting}"
        elif not self.fits(least_bytes):
            fix = f"more memory: the engine alone takes {least_bytes >> 20} MiB"
        else:
            fix = "cut the picture into parts, or use an engine of smaller tiles"
        raise OutOfMemoryError(output, got, allowed, fix)


@dataclass(frozen=True, slots=True)
class PictureBytes:
    """What a picture takes beside the engine, at most. pixels: the input, from its reading to its end. computing:
    until the networks are through with it. finishing: bands and encoder, until its file is there.
    """

    pixels: int
    computing: int
    finishing: int

    @property
    def total(self) -> int:
        return self.pixels + self.computing + self.finishing


def picture_parts(
    upscaler: Upscaler,
    info: ImageInfo,
    size: tuple[int, int],
    output: Path,
    color_fix: str | None = None,
    tile_px: int | None = None,
) -> PictureBytes:
    """What a picture will take. size: of the output file, width and height.

    color_fix, tile_px: None for the engine's default and the tile that is open.
    """
    factor, sample_bytes = upscaler.upscale_factor, 1 if info.bits == 8 else 4
    side_rows = min(tile_px or upscaler.tile_px, info.height_px) * factor
    width_px = info.width_px * factor
    # Two rows of tiles: the inputs of the next are made before the last is given out; and the resizer's own copy.
    enlarged = 3 * side_rows * width_px * info.channels * sample_bytes
    canvas = side_rows * width_px * 12
    band = max(min(BAND_BYTES, canvas), LEAST_BAND_ROWS * width_px * 12)
    file_format = format_from_path(output)
    samples = 4 * (info.bits // 8)
    rows = _ENCODER_ROWS * max(width_px, size[0]) * samples
    # The queue holds no more than the picture.
    fixed = min(_ENCODER_BYTES, width_px * info.height_px * factor * samples + (_ENCODER_BYTES >> 2))
    held_bytes = file_format.held_bytes + (file_format.held_alpha_bytes if info.has_alpha else 0)
    encoder = held_bytes * size[0] * size[1] + rows + fixed
    adain = (color_fix or upscaler.color_fix) == "adain"
    waiting = min(HELD_BYTES, width_px * info.height_px * factor * 12) if adain else 0
    finishing = _BANDS_UNDER_WAY * band + encoder + waiting
    return PictureBytes(*(int(count * _SAFETY) for count in (info.decode_bytes, enlarged + canvas, finishing)))


def bytes_from_text(text: str) -> int:
    """`4G`, `1500M`, `2GiB`, `3.5GB`, or bytes; G is 2**30, GB 10**9. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip().upper())
    exponent = " KMGT".index(found["unit"] or " ") if found else 0
    result = int(float(found["number"]) * (1000 if found["suffix"] == "B" else 1024) ** exponent) if found else 0
    if result <= 0:
        raise UsageError("--memory", repr(text), "such as 4G or 1500M")
    return result
