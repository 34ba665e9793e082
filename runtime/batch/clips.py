"""The frames of a film through a video engine, a chunk of them at a time; see `frames` for engines of pictures."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.arrays import Array
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.batch.frames import FrameScores, Sink
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.films.types import Frame
from intsr.runtime.pictures.writer import resized_pixels
from intsr.runtime.tiles.grid import plan_tiles
from intsr.runtime.tiles.overlap import EndError, in_sequence
from intsr.runtime.video.chunks import Chunk, chunks_of, first_chunk_for
from intsr.runtime.video.clip import ClipRun

if TYPE_CHECKING:
    from intsr.runtime.engine import Engine


@dataclass(slots=True)
class ChunkRun:
    """Frames, of one size, from the first wanted one on, into a sink. done: how many of them an earlier run has
    written; chunks lie where they would without it, so that the others are what they would be.
    """

    engine: Engine
    options: FileOptions
    frames: Iterator[Frame]
    sink: Sink
    spill_folder: Path
    done: int = 0
    scores: FrameScores = field(default_factory=FrameScores)

    def run(self) -> Iterator[Frame]:
        """Yield each frame once it is written. Raises what reading, computing and writing raise."""
        backend = self.engine.backend
        assert isinstance(backend, VideoBackend)
        chunk = backend.chunk
        options = self.options
        clip = ClipRun(
            self.engine, chunk.overlap_frames, options.color_fix, options.overlap_px, spill_folder=self.spill_folder
        )
        skipped = first_chunk_for(self.done, chunk.frames, chunk.overlap_frames)
        chunks = chunks_of(islice(self.frames, skipped, None), chunk.frames, chunk.overlap_frames)
        left_out = self.done - skipped

        def prepare() -> Chunk[Frame]:
            found = next(chunks, None)
            if found is None:
                raise EndError
            return found

        def compute(found: Chunk[Frame]) -> Generator[tuple[Frame, Array]]:
            pixels = tuple(frame.pixels for frame in found.frames)
            made = clip.finished(Chunk(found.start, pixels, found.is_last))
            yield from zip(found.frames, made, strict=False)

        def finish(found: Chunk[Frame], made: Iterable[tuple[Frame, Array]]) -> list[Frame]:
            first = max(left_out - found.start, 0)
            return [self._written(frame, pixels) for frame, pixels in islice(made, first, None)]

        try:
            with closing(in_sequence(prepare, compute, finish)) as written:
                for frames in written:
                    yield from frames
        finally:
            self.sink.close()

    def _written(self, frame: Frame, made: Array) -> Frame:
        height, width = frame.pixels.shape[:2]
        overlap_px = self.engine.overlap_px if self.options.overlap_px is None else self.options.overlap_px
        scores = self.scores
        scores.frames += 1
        scores.tiles += len(plan_tiles(height, width, self.engine.tile_px, overlap_px).tiles)
        scores.flicker.add(frame.pixels, made)
        size = self.options.output_size(width, height, self.engine.upscale_factor)
        self.sink.write(frame, resized_pixels(made, size), scores)
        return frame
