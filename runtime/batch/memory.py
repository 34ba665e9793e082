"""One decision for each picture, by its header: may it go now, and at which tile?

    process = engine (resident once open, and what an inference takes beyond that)
            + decoding + rows of tiles in work + what the encoder of the file holds

Only decoding grows with the area of the picture, and so does the encoder's share where a format cannot be written in
rows. Rows that wait for the encoder are on disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from intsr import memory
from intsr.errors import OutOfMemoryError, UsageError
from intsr.memory import resident_bytes
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.color_fix.adain import HELD_BYTES
from intsr.runtime.films.names import is_film
from intsr.runtime.pictures.formats.registry import format_from_path
from intsr.runtime.pictures.picture import PictureHeader
from intsr.runtime.tiles.blend import BAND_BYTES, LEAST_BAND_ROWS
from intsr.runtime.tiles.grid import plan_tiles
from intsr.runtime.tiles.growth import grown_size

if TYPE_CHECKING:
    from intsr.runtime.upscaler import Upscaler

# Larger pictures are alone in memory.
_MOST_OVERLAPPING_PX = 24_000_000
# Rows of tiles of float32 in work, and bands of them on their way through blending, colour fix and rounding.
_TILE_ROWS, _BANDS = 4, 6
# Of a film, frames of the output on their way to the encoder.
_FILM_FRAMES = 4
# Of a chunk of a video engine, for each pixel of the output and each frame: floats, and what is done to them.
_CHUNK_BYTES = 3 * 4 * 2 + 3
# What encoders hold for each pixel, most of it frames that they look ahead at: of 8 bits, and of more. Measured at
# 1280x720 on two cores; the first is for all that are not named.
_FILM_ENCODER_BYTES = {"": (240, 360), "libx265": (230, 450), "libsvtav1": (370, 450)}
# What libvips takes for any picture.
_ENCODER_BYTES = 24 << 20
_SIZE = re.compile(r"(?P<number>\d{1,18}(\.\d{1,9})?)\s*(?P<unit>[KMGT])?(?P<suffix>I?B)?")


class MemoryBudget:
    """What pictures take of memory, with an engine and the options of a batch, and what there is of it.

    A picture whose header could not be read takes nothing: its own turn will say what is wrong.
    """

    def __init__(self, upscaler: Upscaler, options: FileOptions) -> None:
        self._upscaler, self._options = upscaler, options

    def allowed_bytes(self) -> int | None:
        """Return what the whole process may have, with what it has already; None where nobody says."""
        if self._options.memory_bytes is not None:
            return self._options.memory_bytes
        free = memory.free_bytes()
        return None if free is None else free + resident_bytes()

    def picture_bytes(self, job: Job, tile_px: int | None = None) -> int:
        """Return at most what a picture takes beside the engine, at one tile or at that which is open.

        Raises ImageError where the format of the output is none.
        """
        header, factor = job.header, self._upscaler.upscale_factor
        if header is None:
            return 0
        film = self._film_bytes(header, tile_px or self._upscaler.tile_px) if job.is_film else 0
        height, width = grown_size(header.height_px, header.width_px, factor, self._upscaler.min_side_px)
        rows = min(tile_px or self._upscaler.tile_px, height) * factor
        row_bytes = width * factor * 12
        band = max(min(BAND_BYTES, rows * row_bytes), LEAST_BAND_ROWS * row_bytes)
        width_px, height_px = self._options.output_size(header.width_px, header.height_px, factor)
        encoder = _ENCODER_BYTES
        if not is_film(job.output):
            encoder += format_from_path(job.output).encoder_bytes * width_px * height_px
        # Rows that wait for the statistics of the whole picture, or of a chunk of frames.
        adain = (self._options.color_fix or self._upscaler.color_fix) == "adain"
        chunk = self._upscaler.backend.chunk
        frames = chunk.frames if chunk is not None and job.is_film else 1
        waiting = min(HELD_BYTES, row_bytes * height * factor * frames) if adain else 0
        # A grown picture is whole once, before it is made smaller.
        waiting += row_bytes * height * factor if height != header.height_px else 0
        return header.decode_bytes + _TILE_ROWS * rows * row_bytes + _BANDS * band + encoder + waiting + film

    def _film_bytes(self, header: PictureHeader, tile_px: int) -> int:
        """What a film takes beyond a picture: tiles that may be used again, whole frames, and its encoder."""
        factor = self._upscaler.upscale_factor
        overlap_px = self._options.overlap_px if self._options.overlap_px is not None else self._upscaler.overlap_px
        backend = self._upscaler.backend
        pixels = header.width_px * header.height_px * factor**2
        if isinstance(backend, VideoBackend):
            # A chunk of frames, and as many enlarged ones; no tiles to use again.
            each = _CHUNK_BYTES + 3 * header.bits // 8
            return backend.chunk.frames * pixels * each + self._encoder_bytes(header)
        plan = plan_tiles(header.height_px, header.width_px, tile_px, min(overlap_px, tile_px - 1))
        tiles = len(plan.tops) * len(plan.lefts) * 3 * (tile_px * factor) ** 2 * 4
        frame = pixels * 3 * header.bits // 8
        return tiles + _FILM_FRAMES * frame + self._encoder_bytes(header)

    def _encoder_bytes(self, header: PictureHeader) -> int:
        width_px, height_px = self._options.output_size(
            header.width_px, header.height_px, self._upscaler.upscale_factor
        )
        codec = self._options.film.codec or ("libx265" if header.bits > 8 else "")
        each = _FILM_ENCODER_BYTES.get(codec, _FILM_ENCODER_BYTES[""])[header.bits > 8]
        return each * width_px * height_px

    def fits(self, jobs: Sequence[Job], tile_px: int | None = None) -> bool:
        """Tell whether these pictures may be in memory at once, at one tile."""
        tile_px = tile_px or self._upscaler.tile_px
        needed = self._upscaler.resident_bytes_at(tile_px) + sum(self.picture_bytes(job, tile_px) for job in jobs)
        allowed = self.allowed_bytes()
        return allowed is None or needed <= allowed

    def fitting_tile(self, job: Job, tile_sizes: Sequence[int]) -> int | None:
        """Return the first of these tiles at which the picture fits; None where there is none."""
        return next((tile_px for tile_px in tile_sizes if self.fits([job], tile_px)), None)

    def may_overlap(self, job: Job, under_way: Sequence[Job]) -> bool:
        """Tell whether a picture may be read while others are computed and written."""
        headers = [one.header for one in (job, *under_way) if one.header is not None]
        are_small = all(header.width_px * header.height_px <= _MOST_OVERLAPPING_PX for header in headers)
        return are_small and self.fits([job, *under_way])

    def check(self, job: Job) -> None:
        """Raises OutOfMemoryError where a picture does not fit even alone."""
        upscaler, header = self._upscaler, job.header
        if header is None or self.fits([job]):
            return
        width_px, height_px = self._options.output_size(header.width_px, header.height_px, upscaler.upscale_factor)
        needed = upscaler.resident_bytes_at(upscaler.tile_px) + self.picture_bytes(job)
        got = f"{width_px}x{height_px} pixels out need about {needed >> 20} MiB"
        allowed = self.allowed_bytes() or 0
        smaller = sorted((tile for tile in upscaler.tile_sizes if tile < upscaler.tile_px), reverse=True)
        least_bytes = upscaler.resident_bytes_at(min(upscaler.tile_sizes))
        if fitting := self.fitting_tile(job, smaller):
            fix = f"give --tile {fitting}"
        elif least_bytes > allowed:
            fix = f"more memory: the engine alone takes {least_bytes >> 20} MiB"
        else:
            fix = "cut the picture into parts, or use an engine of smaller tiles"
        raise OutOfMemoryError(job.output, got, f"at most {allowed >> 20} MiB", fix)


def bytes_from_text(text: str) -> int:
    """Read `4G`, `1500M`, `2GiB`, `3.5GB`, or bytes; G is 2**30, GB 10**9. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip().upper())
    exponent = " KMGT".index(found["unit"] or " ") if found else 0
    result = int(float(found["number"]) * (1000 if found["suffix"] == "B" else 1024) ** exponent) if found else 0
    if result <= 0:
        raise UsageError("--memory", repr(text), "such as 4G or 1500M")
    return result
