"""Many pictures through one engine, each at the largest of its tiles that the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from intsr.errors import IntsrError
from intsr.runtime.batch.files import FileOptions, FileReport, upscale_files
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory_budget import MemoryBudget, picture_parts
from intsr.runtime.pictures.reader import read_info
from intsr.runtime.tiles.blend import TileProgress

if TYPE_CHECKING:
    from intsr.runtime.engine import Engine


class Batch:
    """engine: open, and owned from now on. auto_tile: where a picture does not fit, take a smaller tile that the
    engine holds, and say so in its report; a tile that was asked for is never changed. Close it.
    """

    def __init__(self, engine: Engine, options: FileOptions, auto_tile: bool) -> None:
        self.engine, self._options = engine, options
        self._tile_sizes = tuple(sorted(engine.tile_sizes, reverse=True)) if auto_tile else (engine.tile_px,)
        # The user's default is where the choice begins; larger tiles are for those who ask for them.
        overlap_px = options.overlap_px or 0
        self._tile_sizes = tuple(
            tile for tile in self._tile_sizes if overlap_px < tile < engine.tile_px or tile == engine.tile_px
        )
        self._budget = MemoryBudget(options.memory_bytes)

    def reports(
        self,
        jobs: Sequence[Job],
        tile_progress: TileProgress | None = None,
        skip: Callable[[Job], bool] = lambda job: False,
    ) -> Iterator[FileReport]:
        """One a job, in order; see `upscale_files`."""
        for fitting, group in groupby(jobs, lambda job: self._fitting_tile(job, skip)):
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
        made = upscale_files(self.engine, jobs, self._options, tile_progress, skip)
        for job, report in zip(jobs, made, strict=True):
            shrunk = tile_px < first and report.status == "ok"
            yield job, replace(report, notes=(*report.notes, note)) if shrunk else report

    def _fitting_tile(self, job: Job, skip: Callable[[Job], bool]) -> int | None:
        """The largest that fits, None where none does; of a picture that cannot be read, the largest: its turn will
        tell.
        """
        tiles = self._tile_sizes
        if len(tiles) == 1 or job.problem or skip(job):
            return tiles[0]
        try:
            info = read_info(job.source)
        except (IntsrError, OSError):
            return tiles[0]
        size = self._options.output_size(info.width_px, info.height_px, self.engine.upscale_factor)
        for tile_px in tiles:
            try:
                parts = picture_parts(self.engine, info, size, job.output, self._options.color_fix, tile_px)
            except IntsrError:
                return tiles[0]
            if self._budget.fits(self.engine.resident_bytes_at(tile_px) + parts.total):
                return tile_px
        return None

    def _again_smaller(
        self, job: Job, report: FileReport, tile_px: int, tile_progress: TileProgress | None
    ) -> FileReport:
        for smaller in self._tile_sizes:
            if smaller < tile_px and report.out_of_memory:
                ((_, report),) = self._run([job], smaller, tile_progress)
        return report

    def close(self) -> None:
        self.engine.close()
