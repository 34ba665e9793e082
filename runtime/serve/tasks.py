"""What a request asks for, one picture at a time: an array that becomes an array, or a file that becomes a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.runtime.batch.files import read_picture, write_picture
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.naming import OUTPUT_FORMATS, SAME_FORMAT
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.pictures.formats.registry import FORMATS, format_from_path
from intsr.runtime.pictures.picture import PictureHeader
from intsr.runtime.pictures.python_types import pixels_from_picture
from intsr.runtime.pictures.reader import read_header
from intsr.runtime.tiles.blend import Band, FinishedBand
from intsr.runtime.upscaler import Upscaler, Work
from intsr.types import COLOR_FIXES

Parameters: TypeAlias = Mapping[str, str | int | float | bool]

# Parameters of a request -> the types that they may have.
TYPES: dict[str, Any] = {"color_fix": str, "outscale": (int, float), "format": str, "quality": int}
ARRAY_PARAMETERS = ("color_fix",)
# The result, and its copy for the server.
_COPIES = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture in memory, of which nothing is computed yet."""

    work: Work
    # From what the networks make of it to the result: (H f, W f, 3) of the array's dtype, or a file's (N,) uint8.
    finish: Callable[[Iterable[Band | FinishedBand]], Array]


@dataclass(frozen=True, slots=True)
class Task:
    """One picture of a request."""

    # What it takes of memory; of an array, there are no such files.
    job: Job
    # Raises ImageError, UsageError, OutOfMemoryError.
    prepare: Callable[[], Prepared]


def array_task(upscaler: Upscaler, pixels: Array, parameters: Parameters, memory_bytes: int | None) -> Task:
    """pixels: (H, W, 3) uint8 or uint16. Raises ImageError, UsageError."""
    options = _options(parameters, ARRAY_PARAMETERS, memory_bytes)
    height_px, width_px = pixels_from_picture(pixels).shape[:2]
    header = PictureHeader(
        path=Path("image"),
        format="",
        width_px=width_px,
        height_px=height_px,
        bits=8 * pixels.itemsize,
        channels=3,
        has_alpha=False,
        decoder_bytes=_COPIES * upscaler.upscale_factor**2 * 3 * pixels.itemsize,
    )
    job = Job(Path("image"), Path("image.png"), header=header)

    def prepare() -> Prepared:
        MemoryBudget(upscaler, options).check(job)
        work = upscaler.start(pixels, options.color_fix)
        return Prepared(work, lambda bands: work.whole(work.finish(bands)))

    return Task(job, prepare)


def file_task(
    upscaler: Upscaler, data: Array, parameters: Parameters, memory_bytes: int | None, folder: Path
) -> Task:
    """data: a picture file's bytes, (N,) uint8. folder: for it and for the result, its own. Raises ImageError,
    UsageError, OSError.
    """
    options = _options(parameters, tuple(TYPES), memory_bytes)
    source = folder / "encoded"
    data.tofile(source)
    header = read_header(source)
    suffix = _output_suffix(str(parameters.get("format", SAME_FORMAT)), header.format)
    if options.quality is not None and format_from_path(Path(f"a{suffix}")).default_quality is None:
        raise UsageError(
            "parameter quality", "has no effect: the output is not JPEG, WebP or AVIF", fix="leave it out"
        )
    job = Job(source, folder / f"upscaled{suffix}", header=header)

    def prepare() -> Prepared:
        opened = read_picture(upscaler, job, options)

        def finish(bands: Iterable[Band | FinishedBand]) -> Array:
            write_picture(upscaler, opened, bands, options)
            return np.fromfile(job.output, np.uint8)

        return Prepared(opened.work, finish)

    return Task(job, prepare)


def _options(parameters: Parameters, known: tuple[str, ...], memory_bytes: int | None) -> FileOptions:
    for name, value in parameters.items():
        if name not in known:
            why = ", which is for encoded pictures" if name in TYPES else ""
            raise UsageError(f"parameter {name}", f"{value!r}{why}", f"one of {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, TYPES[name]):
            expected = "text" if TYPES[name] is str else "a number"
            raise UsageError(f"parameter {name}", repr(value), expected)
    color_fix, outscale, quality = (parameters.get(name) for name in ("color_fix", "outscale", "quality"))
    if color_fix is not None and color_fix not in COLOR_FIXES:
        raise UsageError("parameter color_fix", repr(color_fix), f"one of {', '.join(COLOR_FIXES)}")
    return FileOptions(
        color_fix=None if color_fix is None else str(color_fix),
        outscale=None if outscale is None else float(outscale),
        quality=None if quality is None else int(quality),
        memory_bytes=memory_bytes,
    )


def _output_suffix(output_format: str, input_format: str) -> str:
    if output_format not in OUTPUT_FORMATS:
        raise UsageError("parameter format", repr(output_format), f"one of {', '.join(OUTPUT_FORMATS)}")
    if output_format != SAME_FORMAT:
        return f".{output_format}"
    return next(item.suffixes[0] for item in FORMATS if item.name == input_format)
