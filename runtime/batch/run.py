"""Many pictures through one engine, each at the largest of its tiles that the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from intsr.errors import IntsrError
from intsr.runtime.batch.files import FileReport, upscale_files, with_header
from intsr.runtime.batch.films import FrameProgress, reported_film
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.tiles.blend import TileProgress

if TYPE_CHECKING:
    from intsr.runtime.engine import Engine


class Batch:
    """Pictures through an engine, which it owns and closes."""

    def __init__(
        self, engine: Engine, options: FileOptions, auto_tile: bool, frame_progress: FrameProgress | None = None
    ) -> None:
        """frame_progress: shows how far a film is. auto_tile: where a picture does not fit, take a smaller tile that
        the engine holds, and say so in its report; a tile that was asked for is never changed.
        """
        self.engine, self._options, self._frame_progress = engine, options, frame_progress
        # The user's default is where the choice begins; larger tiles are for those who ask for them.
        smaller = [tile for tile in engine.tile_sizes if (options.overlap_px or 0) < tile < engine.tile_px]
        self._tile_sizes = (engine.tile_px, *(sorted(smaller, reverse=True) if auto_tile else []))

    def reports(
        self,
        jobs: Sequence[Job],
        tile_progress: TileProgress | None = None,
        skip: Callable[[Job], bool] = lambda job: False,
    ) -> Generator[FileReport]:
        """Yield one a job, in order; see `upscale_files`."""
        whole = (job if skip(job) else with_header(job) for job in jobs) if len(self._tile_sizes) > 1 else jobs
        for fitting, group in groupby(whole, self._fitting_tile):
            tile_px = fitting or self._tile_sizes[0]
            held: list[tuple[Job, FileReport]] = []
            for job, report in self._run(list(group), tile_px, tile_progress, skip):
                # Predicted to fit, and did not: again when the others are through, and those behind it wait.
                if held or (fitting and report.out_of_memory and tile_px > self._tile_sizes[-1]):
                    held.append((job, report))
                else:
                    yield report
            for job, report in held:
                yield self._again_smaller(job, report, tile_px, tile_progress) if report.out_of_memory else report

    def _run(
        self,
        jobs: Sequence[Job],
        tile_px: int,
        tile_progress: TileProgress | None,
        skip: Callable[[Job], bool] = lambda job: False,
    ) -> Iterator[tuple[Job, FileReport]]:
        if self.engine.tile_px != tile_px:
            self.engine = self.engine.reopen(tile_px)
        first = self._tile_sizes[0]
        note = f"tiles of {tile_px} pixels instead of {first}: that is what fits into memory"
        made = self._made(jobs, tile_progress, skip)
        for job, report in zip(jobs, made, strict=True):
            shrunk = tile_px < first and report.status == "ok"
            yield job, replace(report, notes=(*report.notes, note)) if shrunk else report

    def _made(
        self, jobs: Sequence[Job], tile_progress: TileProgress | None, skip: Callable[[Job], bool]
    ) -> Iterator[FileReport]:
        """Films one after the other, the pictures between them as one batch."""
        for is_film, group in groupby(jobs, lambda job: job.is_film):
            if is_film:
                yield from (
                    reported_film(self.engine, job, self._options, self._frame_progress, skip) for job in group
                )
            else:
                yield from upscale_files(self.engine, list(group), self._options, tile_progress, skip)

    def _fitting_tile(self, job: Job) -> int | None:
        """Return the largest tile that fits, None where none does; without a header the largest."""
        if job.header is None:
            return self._tile_sizes[0]
        try:
            return MemoryBudget(self.engine, self._options).fitting_tile(job, self._tile_sizes)
        except IntsrError:
            return self._tile_sizes[0]

    def _again_smaller(
        self, job: Job, report: FileReport, tile_px: int, tile_progress: TileProgress | None
    ) -> FileReport:
        for smaller in self._tile_sizes:
            if smaller < tile_px and report.out_of_memory:
                ((_, report),) = self._run([job], smaller, tile_progress)
        return report

    def close(self) -> None:
        self.engine.close()
