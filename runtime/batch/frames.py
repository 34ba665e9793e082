"""The frames of a film through an engine: one is read while one is computed and one written."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from intsr.arrays import Array
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.films.types import Frame
from intsr.runtime.measure.flicker import FlickerMeter
from intsr.runtime.pictures.writer import resized_pixels
from intsr.runtime.tiles.blend import Band, FinishedBand
from intsr.runtime.tiles.memory import TileMemory
from intsr.runtime.tiles.overlap import EndError, in_sequence

if TYPE_CHECKING:
    from intsr.runtime.upscaler import Upscaler, Work


@dataclass(slots=True)
class FrameScores:
    """What is known of the frames that were made. Sums; those of parts of a film add up."""

    frames: int = 0
    tiles: int = 0
    # Tiles whose pixels were those of the frame before: they were not computed again.
    still_tiles: int = 0
    flicker: FlickerMeter = field(default_factory=FlickerMeter)


class Sink(Protocol):
    """Where finished frames go, in order, in the finishing thread."""

    def write(self, frame: Frame, pixels: Array | None, scores: FrameScores) -> None:
        """pixels: (H, W, 3) of the output's size; None for those of the frame before. scores: up to here."""

    def close(self) -> None:
        """No more frames will come: all were written, or the run is over for another reason."""


@dataclass(slots=True)
class _Prepared:
    """A frame that was read, and the computing of it; None where it is the same as the one before."""

    frame: Frame
    work: Work | None
    # Once it is computed.
    still_tiles: int = 0


@dataclass(slots=True)
class FrameRun:
    """Frames, of one size, from an iterator into a sink; each of the three steps runs in a thread of its own."""

    upscaler: Upscaler
    options: FileOptions
    frames: Iterator[Frame]
    sink: Sink
    # Where a colour fix may keep rows that are too many for memory.
    spill_folder: Path
    scores: FrameScores = field(default_factory=FrameScores)
    memory: TileMemory = field(default_factory=TileMemory)
    # Of the reading thread: the pixels of the frame before. Of the finishing one: how many tiles it has.
    _before: Array | None = None
    _tiles: int = 0

    def run(self) -> Iterator[Frame]:
        """Yield each frame once it is written. Raises what reading, computing and writing raise."""
        try:
            with closing(in_sequence(self._prepare, self._compute, self._finish)) as made:
                yield from made
        finally:
            self.sink.close()

    def _prepare(self) -> _Prepared:
        frame = next(self.frames, None)
        if frame is None:
            raise EndError
        before, self._before = self._before, frame.pixels
        if before is not None and np.array_equal(before, frame.pixels):
            return _Prepared(frame, None)
        work = self.upscaler.start(
            frame.pixels,
            self.options.color_fix,
            self.options.overlap_px,
            spill_folder=self.spill_folder,
            memory=self.memory,
        )
        return _Prepared(frame, work)

    def _compute(self, prepared: _Prepared) -> Generator[Band | FinishedBand]:
        if prepared.work is not None:
            self.memory.recalled = 0
            yield from prepared.work.bands()
            prepared.still_tiles = self.memory.recalled

    def _finish(self, prepared: _Prepared, bands: Iterable[Band | FinishedBand]) -> Frame:
        frame, work, scores = prepared.frame, prepared.work, self.scores
        scores.frames += 1
        if work is None:
            scores.flicker.add_repeat()
            scores.still_tiles += self._tiles
            pixels = None
        else:
            made = work.whole(work.finish(bands))
            scores.flicker.add(frame.pixels, made)
            scores.still_tiles += prepared.still_tiles
            self._tiles = work.tiles
            height, width = frame.pixels.shape[:2]
            pixels = resized_pixels(made, self.options.output_size(width, height, self.upscaler.upscale_factor))
        scores.tiles += self._tiles
        self.sink.write(frame, pixels, scores)
        return frame
