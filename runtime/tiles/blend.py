"""A picture through tiles, as bands of rows from top to bottom: what is held grows with its width, not its height."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

import numpy as np

from intsr.arrays import Array
from intsr.errors import VerificationError
from intsr.runtime.color_fix import ColorFix
from intsr.runtime.tiles.enlarge import Enlarger, unit_channels, unit_part
from intsr.runtime.tiles.grid import Tile, TilePlan, pad_to_square, plan_weights
from intsr.runtime.tiles.memory import TileMemory
from intsr.runtime.tiles.stage_clock import StageClock

TileProgress: TypeAlias = Callable[[Sequence[Tile]], Iterable[Tile]]
RunTiles: TypeAlias = Callable[[Iterator[Array]], Generator[Array]]

# Rec. 601, as Pillow's own RGB to L.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# An input that spans at least this much of its range is not flat.
_FLAT_RANGE = 8 / 255
# Less than half a step of 8 bits.
_SAME_COLOUR = 0.4 / 255
# A band of a wide picture is handed on in parts of at most this size; several of them are under way at once.
BAND_BYTES = 48 << 20
LEAST_BAND_ROWS = 64


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of the output as the networks made them, (3, h, W f) float32, nominally in [0, 1].

    enlarged: the same rows of the enlarged input, as `Enlarger.rows` gives them.
    """

    unit: Array
    enlarged: Array


@dataclass(frozen=True, slots=True)
class FinishedBand:
    """Rows that a device has checked and fixed, (h, W f, 3) or (h, W f) uint8."""

    rows: Array


@dataclass(frozen=True, slots=True)
class TiledPicture:
    """A picture on its way through the networks: `inputs` for them, then `bands` of what they made of those."""

    enlarger: Enlarger
    plan: TilePlan
    clock: StageClock
    tile_progress: TileProgress | None = None
    # Whether networks take the pixels themselves, not the enlarged ones.
    takes_pixels: bool = False
    # Of a film: where the tiles are kept for the next frame, and those of the last one that hold for this.
    memory: TileMemory | None = None
    known: Mapping[Tile, Array] = field(default_factory=dict)
    # The enlarged rows of each row of tiles that is under way.
    rows: dict[int, Array] = field(default_factory=dict)

    def inputs(self) -> Iterator[Array]:
        """Yield the (3, T f, T f) in [-1, 1] of every tile that is not known; (3, T, T) where pixels are taken."""
        factor = 1 if self.takes_pixels else self.enlarger.upscale_factor
        for tile in self.plan.tiles:
            if tile in self.known:
                continue
            source, top = (self.enlarger.pixels, tile.top) if self.takes_pixels else (self._enlarged_rows(tile), 0)
            with self.clock.stage("resize"):
                unit = unit_part(source, top, tile.left * factor, tile.height * factor, tile.width * factor)
                x = pad_to_square(unit, self.plan.tile_px * factor) * np.float32(2) - np.float32(1)
            yield x

    def _enlarged_rows(self, tile: Tile) -> Array:
        """The enlarged rows of a row of tiles, made when they are first asked for."""
        if tile.row not in self.rows:
            factor = self.enlarger.upscale_factor
            with self.clock.stage("resize"):
                self.rows[tile.row] = self.enlarger.rows(tile.top * factor, (tile.top + tile.height) * factor)
        return self.rows[tile.row]

    def bands(self, images: Iterator[Array]) -> Generator[Band]:
        """Yield all rows, in order. images: what the networks made of `inputs`; others may follow."""
        factor, plan = self.enlarger.upscale_factor, self.plan
        height_px, width_px = self.enlarger.size
        side_px = plan.tile_px * factor
        tops, weights = tuple(top * factor for top in plan.tops), plan_weights(plan, factor)
        canvas = np.zeros((3, min(side_px, height_px), width_px), np.float32)
        for tile in self.tile_progress(plan.tiles) if self.tile_progress else plan.tiles:
            image = self.known[tile] if tile in self.known else next(images)
            if self.memory is not None:
                self.memory.keep(tile, image)
            with self.clock.stage("blend"):
                _add_tile(canvas, image, tile, factor, weights)
            if tile.column + 1 < len(plan.lefts):
                continue
            count = (*tops, height_px)[tile.row + 1] - tops[tile.row]
            enlarged = self._enlarged_rows(tile)
            del self.rows[tile.row]
            yield from _parts(canvas[:, :count], enlarged[:count])
            with self.clock.stage("blend"):
                canvas[:, : canvas.shape[1] - count] = canvas[:, count:]
                canvas[:, canvas.shape[1] - count :] = 0


def blended_bands(picture: TiledPicture, run_tiles: RunTiles) -> Generator[Band]:
    """Yield all rows, in order. run_tiles: of `inputs` -> (3, T f, T f) that the networks make, in order."""
    # Closed here, not by the garbage collector: after an error a device may still be at work for it.
    with closing(run_tiles(picture.inputs())) as images:
        yield from picture.bands(images)


class SharedRuns:
    """Several pictures in one stream of tiles: where networks take several at once, the end of one picture and the
    beginning of the next share a run.

    pictures: in the order in which `bands` is called, once for each. run_tiles: as of `blended_bands`.
    """

    def __init__(self, pictures: Sequence[TiledPicture], run_tiles: RunTiles) -> None:
        self._waiting, self._run_tiles = deque(pictures), run_tiles
        self._images: Generator[Array] | None = None

    def bands(self) -> Generator[Band]:
        """Yield the rows of the next picture. One that fails or is given up disturbs none of those behind it."""
        picture = self._waiting.popleft()
        if self._images is None:
            self._images = self._run_tiles(chain(picture.inputs(), *(other.inputs() for other in self._waiting)))
        whole = False
        try:
            yield from picture.bands(self._images)
            whole = True
        finally:
            # What is left of this one's would be taken for the next one's.
            if not (whole and self._waiting):
                self._images.close()
                self._images = None


def _add_tile(
    canvas: Array, image: Array, tile: Tile, factor: int, weights: tuple[Sequence[Array], Sequence[Array]]
) -> None:
    """weights: by row and by column of tiles."""
    left, height, width = (value * factor for value in (tile.left, tile.height, tile.width))
    unit = image[:, :height, :width].astype(np.float32) * np.float32(0.5) + np.float32(0.5)
    unit *= weights[0][tile.row][:, None]
    unit *= weights[1][tile.column]
    canvas[:, :height, left : left + width] += unit


def _parts(unit: Array, enlarged: Array) -> Iterator[Band]:
    """Yield copies: the canvas goes on."""
    count = max(BAND_BYTES // (unit.shape[2] * unit.shape[0] * unit.itemsize), LEAST_BAND_ROWS)
    for top in range(0, unit.shape[1], count):
        yield Band(unit[:, top : top + count].copy(), enlarged[top : top + count])


def finished_rows(
    bands: Iterable[Band | FinishedBand], pixels: Array, fix: ColorFix, clock: StageClock
) -> Iterator[Array]:
    """Check, fix the colours of and round bands: yields (h, W f, 3) or (h, W f) as `pixels`, the input, in its dtype.

    Raises VerificationError for an output that is no picture: NaN, infinite, or flat although the input is not; the
    last of these at the end.
    """
    check = OutputCheck()
    for band in bands:
        if isinstance(band, FinishedBand):
            yield band.rows
            continue
        with clock.stage("blend"):
            # NaN goes through max and min: no temporary of the band's size is needed.
            check.add_range(band.unit.min(axis=(1, 2)), band.unit.max(axis=(1, 2)))
            np.clip(band.unit, 0, 1, out=band.unit)
        yield from _rounded(fix.push(band.unit, unit_channels(band.enlarged)), pixels, clock)
    check.finish(pixels)
    yield from _rounded(fix.finish(), pixels, clock)


def _rounded(units: Iterable[Array], pixels: Array, clock: StageClock) -> Iterator[Array]:
    for unit in clock.timed("color_fix", units):
        with clock.stage("blend"):
            rows = pixels_from_unit(unit, pixels)
        yield rows


class OutputCheck:
    """A check that raises VerificationError for what no picture file should be made of."""

    def __init__(self) -> None:
        self._high, self._low = np.full(3, -np.inf, np.float32), np.full(3, np.inf, np.float32)

    def add_range(self, low: Array, high: Array) -> None:
        """Take the least and the largest value by channel; one of them is not finite where any value is not."""
        if not (np.isfinite(high).all() and np.isfinite(low).all()):
            self._fail("NaN or infinite values")
        self._high, self._low = np.maximum(self._high, high), np.minimum(self._low, low)

    def finish(self, pixels: Array) -> None:
        varied = int(np.ptp(pixels, axis=(0, 1)).max()) >= _FLAT_RANGE * np.iinfo(pixels.dtype).max
        # Below 0 where there was nothing to check: finished bands.
        if varied and 0 <= float((self._high - self._low).max()) < _SAME_COLOUR:
            self._fail("one flat colour")

    @staticmethod
    def _fail(problem: str) -> None:
        raise VerificationError("the engine's output", problem, "a picture", "compile the model again")


def pixels_from_unit(unit: Array, like: Array) -> Array:
    """(3, h, W) float32, overwritten -> (h, W, 3) or (h, W) as `like` is, in its dtype, rounded and clipped."""
    peak = np.float32(np.iinfo(like.dtype).max)
    if like.ndim == 2:
        # In this order, not the BLAS library's: a GPU gives the same bits.
        unit = (unit[0] * _LUMA[0] + unit[1] * _LUMA[1] + unit[2] * _LUMA[2])[None]
    result = np.empty((*unit.shape[1:], len(unit)), like.dtype)
    for channel, values in enumerate(unit):
        values *= peak
        np.rint(values, out=values)
        np.clip(values, 0, peak, out=values)
        result[..., channel] = values
    return result if like.ndim == 3 else result[..., 0]
