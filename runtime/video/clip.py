"""Chunks of a film into finished frames: tiles, blending in space and in time, colours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intsr.arrays import Array
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.color_fix import open_color_fix
from intsr.runtime.tiles.blend import OutputCheck, pixels_from_unit
from intsr.runtime.tiles.enlarge import Enlarger, unit_channels, unit_part
from intsr.runtime.tiles.grid import pad_to_square, plan_tiles, plan_weights
from intsr.runtime.tiles.stage_clock import VIDEO_STAGES, StageClock
from intsr.runtime.upscaler import UpscaleResult
from intsr.runtime.video.chunks import Chunk, fade_in

if TYPE_CHECKING:
    from intsr.runtime.upscaler import Upscaler


@dataclass(slots=True)
class ClipRun:
    """The chunks of one film, in order, through a video engine. All frames are of one size.

    color_fix, overlap_px: None for the engine's. overlap_frames: that neighbouring chunks share.
    """

    upscaler: Upscaler
    overlap_frames: int
    color_fix: str | None = None
    overlap_px: int | None = None
    spill_folder: Path | None = None
    clock: StageClock = field(default_factory=lambda: StageClock(dict.fromkeys(VIDEO_STAGES, 0.0)))
    # The last frames of the chunk before, whose beginning of this one they are: (overlap, 3, H f, W f) float32.
    _tail: Array | None = None

    def finished(self, chunk: Chunk[Array]) -> Iterator[Array]:
        """Yield the frames that no later chunk changes, (H f, W f, 3) in the frames' dtype: of the last one all, of
        the others all but the shared ones at its end. Raises VerificationError.
        """
        unit = self._fixed(chunk.frames)
        if self._tail is not None:
            weights = fade_in(self.overlap_frames)[: len(unit), None, None, None]
            count = len(weights)
            unit[:count] = weights * unit[:count] + (1 - weights) * self._tail[:count]
        whole = len(unit) if chunk.is_last else len(unit) - self.overlap_frames
        self._tail = unit[whole:].copy()
        for frame, pixels in zip(unit[:whole], chunk.frames, strict=False):
            yield pixels_from_unit(frame, pixels)

    def _fixed(self, frames: Sequence[Array]) -> Array:
        """(F, 3, H f, W f) float32 in the colours of the enlarged frames, whose statistics are the chunk's."""
        with self.clock.stage("resize"):
            enlarged = [self._enlarger(pixels).rows(0, pixels.shape[0] * self._factor) for pixels in frames]
        unit = self._blended(frames, enlarged)
        name = self.color_fix or self.upscaler.color_fix
        # Statistics are the chunk's; the other fixes look no further than a frame's own surroundings.
        together = len(unit) if name == "adain" else 1
        for first in range(0, len(unit), together):
            self._fix(name, unit[first : first + together], enlarged[first : first + together])
        return unit

    def _fix(self, name: str, units: Array, enlarged: Sequence[Array]) -> None:
        """Frames (n, 3, H f, W f) float32, in place; one tall picture to the fix. A chunk is not held twice."""
        with closing(open_color_fix(name, self.spill_folder)) as fix, self.clock.stage("color_fix"):
            pushed = (fix.push(unit, unit_channels(one)) for unit, one in zip(units, enlarged, strict=True))
            bands = chain(chain.from_iterable(pushed), fix.finish())
            for unit in units:
                top = 0
                while top < unit.shape[1]:
                    band = next(bands)
                    unit[:, top : top + band.shape[1]] = band
                    top += band.shape[1]

    @property
    def _factor(self) -> int:
        return self.upscaler.upscale_factor

    def _enlarger(self, pixels: Array) -> Enlarger:
        return Enlarger(pixels, self._factor, self.upscaler.resize_filter)

    def _blended(self, frames: Sequence[Array], enlarged: Sequence[Array]) -> Array:
        """(F, 3, H f, W f) float32 in [0, 1]: all tiles of a chunk, blended."""
        upscaler, factor = self.upscaler, self._factor
        height, width = frames[0].shape[:2]
        overlap_px = upscaler.overlap_px if self.overlap_px is None else self.overlap_px
        plan = plan_tiles(height, width, upscaler.tile_px, overlap_px)
        size = height * factor, width * factor
        side_px = plan.tile_px * factor
        by_row, by_column = plan_weights(plan, factor)
        canvas, check = np.zeros((len(frames), 3, *size), np.float32), OutputCheck()
        for tile in plan.tiles:
            top, left, tall, wide = (value * factor for value in (tile.top, tile.left, tile.height, tile.width))
            with self.clock.stage("resize"):
                parts = [pad_to_square(unit_part(one, top, left, tall, wide), side_px) for one in enlarged]
                x = np.stack(parts, axis=1) * np.float32(2) - np.float32(1)
            weights = by_row[tile.row][:, None] * by_column[tile.column]
            for index, made in enumerate(self._run(x)):
                if index < len(frames):
                    with self.clock.stage("blend"):
                        unit = made[:, :tall, :wide] * np.float32(0.5) + np.float32(0.5)
                        check.add_range(unit.min(axis=(1, 2)), unit.max(axis=(1, 2)))
                        canvas[index, :, top : top + tall, left : left + wide] += unit * weights
        check.finish(np.stack(frames).reshape(-1, width, 3))
        return np.clip(canvas, 0, 1, out=canvas)

    def _run(self, x: Array) -> Iterator[Array]:
        """(3, F, S, S) -> each frame's (3, S, S). A chunk of fewer frames is filled up with its last one."""
        backend = self.upscaler.backend
        assert isinstance(backend, VideoBackend)
        missing = backend.chunk.frames - x.shape[1]
        whole = np.concatenate([x, np.repeat(x[:, -1:], missing, axis=1)], axis=1)
        with self.upscaler.turn():
            for frames in backend.run_chunk(whole[None], self.clock.add):
                yield from frames[0].astype(np.float32).transpose(1, 0, 2, 3)


def chunk_with_timings(upscaler: Upscaler, frames: Array) -> UpscaleResult:
    """One chunk of a film as `Upscaler.upscale_with_timings`. frames: (F, H, W, 3), at most as many as a chunk has.

    Stages are `VIDEO_STAGES`: of encoder and decoder, the first frame and what is behind it apart.
    """
    run = ClipRun(upscaler, 0)
    with upscaler.turn():
        start = time.perf_counter()
        made = np.stack(list(run.finished(Chunk(0, tuple(frames), is_last=True))))
        total_ms = (time.perf_counter() - start) * 1e3
    height_px, width_px = frames.shape[1:3]
    tiles = plan_tiles(height_px, width_px, upscaler.tile_px, upscaler.overlap_px).tiles
    return UpscaleResult(made, run.clock.stages_ms, total_ms, len(tiles), run.clock.transfers_ms)
