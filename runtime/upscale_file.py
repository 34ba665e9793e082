"""One picture file in, one picture file out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from intsr.errors import IntsrError, OutOfMemoryError
from intsr.runtime.batch import Job
from intsr.runtime.image_io import read_image, read_info
from intsr.runtime.image_write import (
    check_alpha_fits,
    check_output_fits,
    enlarge_alpha,
    notes_for_output,
    write_image,
)
from intsr.runtime.upscaler import TileProgress, Upscaler
from intsr.types import SYNTHETIC_NOTE


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one picture. status: `ok`, `skipped`, `failed`. width, height: of the output, pixels; None
    unless it was written now. ms: reading and writing included.
    """

    input: str
    output: str
    status: str
    width: int | None = None
    height: int | None = None
    tile_px: int | None = None
    ms: float | None = None
    error: str | None = None
    out_of_memory: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["out_of_memory"]
        return values


def report_from_job(
    upscaler: Upscaler,
    job: Job,
    color_fix: str | None = None,
    overlap_px: int | None = None,
    tile_progress: TileProgress | None = None,
) -> FileReport:
    """Upscale one file. What is wrong with this picture alone becomes its report, not an exception."""
    try:
        return upscale_file(upscaler, job, color_fix, overlap_px, tile_progress)
    except (IntsrError, OSError) as error:
        out_of_memory = isinstance(error, OutOfMemoryError)
        return FileReport(str(job.source), str(job.output), "failed", error=str(error), out_of_memory=out_of_memory)
    except MemoryError:
        error_text = f"{job.source}: out of memory; cut the picture into parts first"
        return FileReport(str(job.source), str(job.output), "failed", error=error_text, out_of_memory=True)


def upscale_file(
    upscaler: Upscaler,
    job: Job,
    color_fix: str | None = None,
    overlap_px: int | None = None,
    tile_progress: TileProgress | None = None,
) -> FileReport:
    """Raises ImageError, UsageError, OutOfMemoryError, VerificationError, OSError; then the output is as it was."""
    start, factor = time.perf_counter(), upscaler.upscale_factor
    check_output_fits(read_info(job.source), factor, job.output)
    loaded = read_image(job.source, factor)
    check_alpha_fits(loaded.alpha, job.output)
    pixels = upscaler.upscale_with_timings(loaded.pixels, color_fix, overlap_px, tile_progress).image
    alpha = None if loaded.alpha is None else enlarge_alpha(loaded.alpha, factor)
    write_image(job.output, pixels, alpha, loaded.metadata)
    height, width = pixels.shape[:2]
    ms = (time.perf_counter() - start) * 1e3
    notes = (*loaded.notes, *notes_for_output(loaded.metadata, job.output))
    notes += (SYNTHETIC_NOTE,) if upscaler.synthetic else ()
    return FileReport(
        str(job.source), str(job.output), "ok", width, height, upscaler.tile_px, round(ms, 1), notes=notes
    )
