"""What `intsr upscale` shows: its dry run, how far it has got, each report, and the sum of all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from intsr.cli.console import emit_json, on_terminal, progress, say, tell
from intsr.errors import EXIT_OUT_OF_MEMORY, EXIT_SOME_FAILED, IntsrError, printable

if TYPE_CHECKING:
    from intsr.manifest import Manifest
    from intsr.runtime.batch.files import FileReport, FilmReport
    from intsr.runtime.batch.jobs import Job
    from intsr.runtime.batch.options import FileOptions
    from intsr.runtime.batch.pipes import Pipes
    from intsr.runtime.films.types import Frame
    from intsr.runtime.tiles.grid import Tile

# Of so many tiles a picture takes long enough to be announced.
_MANY_TILES = 64


def show_plan(
    jobs: Sequence[Job], manifest: Manifest, options: FileOptions, named: Callable[[str], str], as_json: bool
) -> None:
    """The dry run: a line a picture; exit code 1 where one cannot be read or must not be made."""
    from intsr.runtime.batch.plan import planned_picture

    failed = 0
    for job in jobs:
        try:
            planned = planned_picture(job, manifest, options, named)
        except (IntsrError, OSError) as error:
            text = str(error).replace(str(job.source), named(str(job.source)))
            tell(f"intsr: error: {text}")
            if as_json:
                paths = {"input": named(str(job.source)), "output": named(str(job.output))}
                emit_json(paths | {"status": "failed", "error": text})
            failed += 1
            continue
        if as_json:
            emit_json(asdict(planned))
        else:
            size, tiles = f"{planned.width}x{planned.height}", f"{planned.tiles} of {planned.tile_px} pixels"
            frames = f"; {planned.frames} frames" if planned.frames is not None else ""
            computed = f"{planned.redundancy:.2f} times the picture computed"
            click.echo(printable(f"{planned.input} -> {planned.output} ({size}{frames}; tiles: {tiles}, {computed})"))
    if failed:
        sys.exit(EXIT_SOME_FAILED)


def tile_progress_of(
    job: Job, options: FileOptions, factor: int, pipes: Pipes
) -> Callable[[Sequence[Tile]], Iterable[Tile]]:
    """Return a function that shows how far one picture has got."""

    def shown(tiles: Sequence[Tile]) -> Iterable[Tile]:
        if len(tiles) >= _MANY_TILES and not on_terminal():
            # The last tile ends where the picture does.
            last = tiles[-1]
            width_px, height_px = last.left + last.width, last.top + last.height
            made_width, made_height = options.output_size(width_px, height_px, factor)
            size = f"{width_px}x{height_px} -> {made_width}x{made_height}"
            say(printable(f"{pipes.named(str(job.source))}: {size}, {len(tiles)} tiles"))
        return progress(tiles, "Upscaling", len(tiles))

    return shown


def frame_progress(frames: Iterator[Frame], total: int | None) -> Iterator[Frame]:
    return progress(frames, "Upscaling", total, unit="frames")


def show_report(report: FileReport, as_json: bool) -> FileReport:
    if as_json:
        emit_json(report.to_json())
    if report.status == "failed":
        tell(f"intsr: error: {report.error}")
    elif not as_json and report.status == "skipped":
        say(printable(f"{report.input}: {report.output} is there already"))
    elif not as_json:
        size = f"{report.width}x{report.height}"
        what = f"{size}, {report.ms:.0f} ms" if report.film is None else f"{size}, {_film_words(report.film)}"
        say(printable(f"{report.input} -> {report.output} ({what})"))
    for note in report.notes:
        say(printable(f"{report.input}: note: {note}"))
    return report


def _film_words(film: FilmReport) -> str:
    words = [f"{film.frames} frames", f"{film.frames_per_s:.2f} frames/s"]
    if film.resumed:
        words.insert(1, f"{film.resumed} of them by an earlier run")
    if film.still_share:
        words.append(f"{film.still_share:.0%} of it stood still and was not computed again")
    if film.flicker is not None:
        words.append(f"flicker {film.flicker:.2f} levels")
    return ", ".join(words)


def finish(reports: Sequence[FileReport]) -> None:
    failed = [report for report in reports if report.status == "failed"]
    if len(reports) > 1:
        counts = {status: sum(r.status == status for r in reports) for status in ("ok", "skipped", "failed")}
        say(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if failed:
        sys.exit(EXIT_OUT_OF_MEMORY if all(report.out_of_memory for report in failed) else EXIT_SOME_FAILED)
