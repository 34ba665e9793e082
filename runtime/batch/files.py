"""Picture files in, picture files out: read, computed and written beside one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import IntsrError, OutOfMemoryError, OutputExistsError, printable
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.films.header import film_header
from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage
from intsr.runtime.pictures.reader import read_header, read_image
from intsr.runtime.pictures.writer import check_alpha_fits, check_pixels_fit, notes_for_output, open_writer
from intsr.runtime.tiles.blend import Band, FinishedBand, TileProgress
from intsr.runtime.tiles.enlarge import Enlarger
from intsr.runtime.tiles.growth import check_growth
from intsr.runtime.tiles.overlap import overlapped
from intsr.runtime.upscaler import Upscaler, Work
from intsr.types import SYNTHETIC_NOTE


@dataclass(frozen=True, slots=True)
class FilmReport:
    """What there is to say of a film beside its file."""

    # In all, and of them those of an earlier run.
    frames: int
    resumed: int
    # Of all tiles, those with the pixels of the frame before: they were not computed again.
    still_share: float
    # Of `FlickerMeter`, levels of 8 bits; None where nothing of the film stands still.
    flicker: float | None
    frames_per_s: float


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one picture or film."""

    input: str
    output: str
    # `ok`, `skipped` or `failed`.
    status: str
    # Of the output, in pixels; None, as the next three, unless it was written now.
    width: int | None = None
    height: int | None = None
    tile_px: int | None = None
    tiles: int | None = None
    # With reading and writing, which other pictures may share.
    ms: float | None = None
    error: str | None = None
    out_of_memory: bool = False
    notes: tuple[str, ...] = ()
    film: FilmReport | None = None

    def to_json(self) -> dict[str, Any]:
        left_out = {"out_of_memory"} if self.film is not None else {"out_of_memory", "film"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def renamed(self, named: Callable[[str], str]) -> FileReport:
        """named: what a text calls files -> what people call them."""
        error = None if self.error is None else named(self.error)
        return replace(self, input=named(self.input), output=named(self.output), error=error)


@dataclass(frozen=True, slots=True)
class OpenedPicture:
    """A picture that was read, and the computing of it that has not begun."""

    job: Job
    loaded: LoadedImage
    work: Work
    start: float


class _AppearedError(Exception):
    """The output was not there when the batch began, and is now."""


def settled(job: Job, skip: Callable[[Job], bool]) -> FileReport | None:
    """Return the report of a job that is not to be done, for its problem or as `skip` says so; else None."""
    if job.problem:
        text = f"{job.source}: {job.output} {job.problem}"
        return FileReport(str(job.source), str(job.output), "failed", error=text)
    return FileReport(str(job.source), str(job.output), "skipped") if skip(job) else None


def upscale_files(
    upscaler: Upscaler,
    jobs: Sequence[Job],
    options: FileOptions,
    tile_progress: TileProgress | None = None,
    skip: Callable[[Job], bool] = lambda job: False,
) -> Iterator[FileReport]:
    """Yield a report a job, in order. What is wrong with one picture becomes its report, not an exception.

    skip: true for a job whose output is there already; asked of all before the first begins, and again when a job's
    turn has come: another process may have been at work.
    """
    done = [settled(job, skip) for job in jobs]
    wanted = [job for job, report in zip(jobs, done, strict=True) if report is None]

    def read(job: Job) -> OpenedPicture:
        if skip(job):
            raise _AppearedError
        return read_picture(upscaler, job, options, tile_progress)

    made = _made(upscaler, wanted, options, read)
    for job, report in zip(jobs, done, strict=True):
        if report is not None:
            yield report
            continue
        _, result = next(made)
        if isinstance(result, _AppearedError) or (isinstance(result, OutputExistsError) and skip(job)):
            yield FileReport(str(job.source), str(job.output), "skipped")
        else:
            yield failure(job, result) if isinstance(result, Exception) else result


def upscale_file(
    upscaler: Upscaler, job: Job, options: FileOptions, tile_progress: TileProgress | None = None
) -> FileReport:
    """Make one file. Raises ImageError, UsageError, OutOfMemoryError, VerificationError, OSError; then the output is
    as it was.
    """
    ((_, result),) = _made(upscaler, [job], options, lambda job: read_picture(upscaler, job, options, tile_progress))
    if isinstance(result, Exception):
        raise result
    return result


def with_header(job: Job) -> Job:
    """Read the header of the job's source, once; where that cannot be done, the job's turn will say why."""
    if job.header is not None or job.problem:
        return job
    try:
        return replace(job, header=(film_header if job.is_film else read_header)(job.source))
    except (IntsrError, OSError):
        return job


def _made(
    upscaler: Upscaler, jobs: Sequence[Job], options: FileOptions, read: Callable[[Job], OpenedPicture]
) -> Iterator[tuple[Job, FileReport | Exception]]:
    return overlapped(
        map(with_header, jobs),
        read,
        lambda opened: opened.work.bands(),
        lambda opened, bands: write_picture(upscaler, opened, bands, options),
        MemoryBudget(upscaler, options).may_overlap,
    )


def failure(job: Job, error: Exception) -> FileReport:
    if isinstance(error, MemoryError):
        text = f"{job.source}: out of memory; give a smaller --tile or --memory, or cut the picture into parts first"
        return FileReport(str(job.source), str(job.output), "failed", error=text, out_of_memory=True)
    if not isinstance(error, IntsrError | OSError):
        raise error
    out_of_memory = isinstance(error, OutOfMemoryError)
    # What the system says names no file where none was named to it.
    text = str(error) if isinstance(error, IntsrError) else printable(f"{job.output}: cannot be written ({error})")
    return FileReport(str(job.source), str(job.output), "failed", error=text, out_of_memory=out_of_memory)


def read_picture(
    upscaler: Upscaler, job: Job, options: FileOptions, tile_progress: TileProgress | None = None
) -> OpenedPicture:
    """Decode a picture, and compute nothing yet. Raises ImageError, UsageError, OutOfMemoryError."""
    start = time.perf_counter()
    header = job.header or read_header(job.source)
    size = options.output_size(header.width_px, header.height_px, upscaler.upscale_factor)
    # Transparency is asked for only once it is known whether there is any.
    check_pixels_fit(*size, header.channels, header.bits, job.output)
    check_growth(header.height_px, header.width_px, upscaler.upscale_factor, upscaler.min_side_px, job.source)
    MemoryBudget(upscaler, options).check(replace(job, header=header))
    loaded = read_image(header)
    check_alpha_fits(loaded.alpha is not None, job.output)
    work = upscaler.start(loaded.pixels, options.color_fix, options.overlap_px, tile_progress, job.output.parent)
    return OpenedPicture(job, loaded, work, start)


def write_picture(
    upscaler: Upscaler, opened: OpenedPicture, bands: Iterable[Band | FinishedBand], options: FileOptions
) -> FileReport:
    """Write what the networks made of it. Raises ImageError, UsageError, VerificationError, OSError."""
    job, loaded, work = opened.job, opened.loaded, opened.work
    made_height, made_width = work.size
    height_px, width_px = loaded.pixels.shape[:2]
    size = options.output_size(width_px, height_px, upscaler.upscale_factor)
    metadata = loaded.metadata if options.keep_metadata else ImageMetadata()
    writer = open_writer(
        job.output,
        made_width,
        made_height,
        1 if loaded.pixels.ndim == 2 else 3,
        loaded.pixels.dtype,
        has_alpha=loaded.alpha is not None,
        metadata=metadata,
        resize_to=size,
        quality=options.quality,
        overwrite=options.overwrite,
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
    """Add the alpha, enlarged apart from the colours, as one more channel to rows (h, W) or (h, W, 3)."""
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
