"""Picture files in, picture files out: read, computed and written beside one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import IntsrError, OutOfMemoryError, OutputExistsError, UsageError, printable
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import BatchMemory
from intsr.runtime.batch.memory_budget import MemoryBudget
from intsr.runtime.pictures.metadata.fields import ImageMetadata
from intsr.runtime.pictures.reader import LoadedImage, read_image, read_info
from intsr.runtime.pictures.write_array import check_alpha_fits, check_format_fits, notes_for_output
from intsr.runtime.pictures.writer import open_writer
from intsr.runtime.tiles.blend import Band, FinishedBand, TileProgress
from intsr.runtime.tiles.enlarge import Enlarger
from intsr.runtime.tiles.overlap import overlapped
from intsr.runtime.upscaler import Upscaler, Work
from intsr.types import SYNTHETIC_NOTE

_MOST_TIMES = 16.0


@dataclass(frozen=True, slots=True)
class FileOptions:
    """color_fix, overlap_px: None for the engine's. outscale: how many times as large the output is, None for the
    engine's factor. quality: 1 to 100, of JPEG, WebP and AVIF, None for each format's own. keep_metadata: EXIF, XMP
    and ICC. memory_bytes: what the whole process may take, None for what is free. overwrite: an output that is there
    by the time it is done is replaced.
    """

    color_fix: str | None = None
    overlap_px: int | None = None
    outscale: float | None = None
    quality: int | None = None
    keep_metadata: bool = True
    memory_bytes: int | None = None
    overwrite: bool = True

    def __post_init__(self) -> None:
        if self.outscale is not None and not 0 < self.outscale <= _MOST_TIMES:
            raise UsageError("--outscale", str(self.outscale), f"above 0, up to {_MOST_TIMES:g}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError("--quality", str(self.quality), "1 to 100")

    def output_size(self, width_px: int, height_px: int, upscale_factor: int) -> tuple[int, int]:
        """Width and height of the file that a picture of this size becomes."""
        times = float(upscale_factor) if self.outscale is None else self.outscale
        return max(round(width_px * times), 1), max(round(height_px * times), 1)


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one picture. status: `ok`, `skipped`, `failed`. width, height: of the output, pixels; None
    unless it was written now. ms: reading and writing included, which other pictures may share.
    """

    input: str
    output: str
    status: str
    width: int | None = None
    height: int | None = None
    tile_px: int | None = None
    tiles: int | None = None
    ms: float | None = None
    error: str | None = None
    out_of_memory: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["out_of_memory"]
        return values


@dataclass(frozen=True, slots=True)
class _Opened:
    """A picture that was read, and the computing of it that has not begun."""

    job: Job
    loaded: LoadedImage
    work: Work
    start: float


class _AppearedError(Exception):
    """The output was not there when the batch began, and is now."""


def upscale_files(
    upscaler: Upscaler,
    jobs: Sequence[Job],
    options: FileOptions,
    tile_progress: TileProgress | None = None,
    skip: Callable[[Job], bool] = lambda job: False,
) -> Iterator[FileReport]:
    """A report a job, in order. What is wrong with one picture becomes its report, not an exception.

    skip: true for a job whose output is there already; asked of all before the first begins, and again when a job's
    turn has come: another process may have been at work.
    """
    wanted = [job for job in jobs if not job.problem and not skip(job)]
    kept = {id(job) for job in wanted}

    def read(job: Job) -> _Opened:
        if skip(job):
            raise _AppearedError
        return _read(upscaler, job, options, tile_progress)

    made = _made(upscaler, wanted, options, read)
    for job in jobs:
        if id(job) not in kept:
            error = f"{job.source}: {job.output} {job.problem}" if job.problem else None
            yield FileReport(str(job.source), str(job.output), "failed" if error else "skipped", error=error)
            continue
        _, result = next(made)
        if isinstance(result, _AppearedError) or (isinstance(result, OutputExistsError) and skip(job)):
            yield FileReport(str(job.source), str(job.output), "skipped")
        else:
            yield _failure(job, result) if isinstance(result, Exception) else result


def upscale_file(
    upscaler: Upscaler, job: Job, options: FileOptions, tile_progress: TileProgress | None = None
) -> FileReport:
    """Raises ImageError, UsageError, OutOfMemoryError, VerificationError, OSError; then the output is as it was."""
    ((_, result),) = _made(upscaler, [job], options, lambda job: _read(upscaler, job, options, tile_progress))
    if isinstance(result, Exception):
        raise result
    return result


def _made(
    upscaler: Upscaler, jobs: Sequence[Job], options: FileOptions, read: Callable[[Job], _Opened]
) -> Iterator[tuple[Job, FileReport | Exception]]:
    room = BatchMemory(upscaler, options)
    return overlapped(
        jobs,
        read,
        lambda opened: opened.work.bands(),
        lambda opened, bands: _write(upscaler, opened, bands, options),
        room.ahead,
        room.beside,
    )


def _failure(job: Job, error: Exception) -> FileReport:
    if isinstance(error, MemoryError):
        text = f"{job.source}: out of memory; give a smaller --tile or --memory, or cut the picture into parts first"
        return FileReport(str(job.source), str(job.output), "failed", error=text, out_of_memory=True)
    if not isinstance(error, IntsrError | OSError):
        raise error
    out_of_memory = isinstance(error, OutOfMemoryError)
    # What the system says names no file where none was named to it.
    text = str(error) if isinstance(error, IntsrError) else printable(f"{job.output}: cannot be written ({error})")
    return FileReport(str(job.source), str(job.output), "failed", error=text, out_of_memory=out_of_memory)


def _read(upscaler: Upscaler, job: Job, options: FileOptions, tile_progress: TileProgress | None) -> _Opened:
    start, factor = time.perf_counter(), upscaler.upscale_factor
    info = read_info(job.source)
    width_px, height_px = options.output_size(info.width_px, info.height_px, factor)
    check_format_fits(info, width_px, height_px, job.output)
    budget = MemoryBudget(options.memory_bytes)
    budget.check_picture(upscaler, info, (width_px, height_px), job.output, options.color_fix)
    loaded = read_image(job.source, factor)
    check_alpha_fits(loaded.alpha, job.output)
    work = upscaler.start(loaded.pixels, options.color_fix, options.overlap_px, tile_progress, job.output.parent)
    return _Opened(job, loaded, work, start)


def _write(
    upscaler: Upscaler, opened: _Opened, bands: Iterable[Band | FinishedBand], options: FileOptions
) -> FileReport:
    job, loaded, work = opened.job, opened.loaded, opened.work
    made_height, made_width = work.enlarger.size
    height_px, width_px = loaded.pixels.shape[:2]
    size = options.output_size(width_px, height_px, upscaler.upscale_factor)
    metadata = loaded.metadata if options.keep_metadata else ImageMetadata()
    writer = open_writer(
        job.output,
        made_width,
        made_height,
        1 if loaded.pixels.ndim == 2 else 3,
        loaded.pixels.dtype,
        loaded.alpha is not None,
        metadata,
        size if size != (made_width, made_height) else None,
        options.quality,
        options.overwrite,
    )
    with writer as picture:
        for rows in _with_alpha(work.finish(bands), loaded.alpha, upscaler.upscale_factor):
            picture.write(rows)
    notes = (*loaded.notes, *notes_for_output(metadata, job.output))
    notes += (SYNTHETIC_NOTE,) if upscaler.synthetic else ()
    notes += upscaler.backend.notes
    ms = round((time.perf_counter() - opened.start) * 1e3, 1)
    return FileReport(str(job.source), str(job.output), "ok", *size, upscaler.tile_px, work.tiles, ms, notes=notes)


def _with_alpha(bands: Iterator[Array], alpha: Array | None, upscale_factor: int) -> Iterator[Array]:
    """Rows (h, W) or (h, W, 3) -> with the alpha, enlarged apart from the colours, as one more channel."""
    if alpha is None:
        yield from bands
        return
    constant = int(alpha.min()) == int(alpha.max())
    enlarger, top = Enlarger(alpha, upscale_factor, "lanczos"), 0
    for rows in bands:
        if constant:
            part = np.full(rows.shape[:2], alpha.flat[0], alpha.dtype)
        else:
            part = enlarger.rows(top, top + len(rows))
            if part.dtype != alpha.dtype:
                part = np.rint(part * np.float32(np.iinfo(alpha.dtype).max)).astype(alpha.dtype)
        top += len(rows)
        yield np.dstack([rows, part])
