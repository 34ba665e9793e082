"""A picture through tiles, as bands of rows from top to bottom: what is held grows with its width, not its height."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from intsr.arrays import Array
from intsr.errors import VerificationError
from intsr.runtime.color_fix import ColorFix
from intsr.runtime.tiles.enlarge import Enlarger, unit_channels, unit_part
from intsr.runtime.tiles.grid import Tile, TilePlan, blend_weights, pad_to_square
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


def blended_bands(
    enlarger: Enlarger,
    plan: TilePlan,
    run_tiles: RunTiles,
    clock: StageClock,
    tile_progress: TileProgress | None = None,
    *,
    memory: TileMemory | None = None,
) -> Generator[Band]:
    """Yield all rows, in order. run_tiles: (3, T f, T f) in [-1, 1] -> the same of the networks, in order. memory: of
    the frame before, whose tiles are not computed again where their pixels are the same.
    """
    factor = enlarger.upscale_factor
    height_px, width_px = enlarger.size
    side_px = plan.tile_px * factor
    tops, lefts = (tuple(start * factor for start in starts) for starts in (plan.tops, plan.lefts))
    weights = blend_weights(tops, side_px, height_px), blend_weights(lefts, side_px, width_px)
    rows = _EnlargedRows(enlarger, plan, clock)
    known = memory.recall(enlarger.pixels, plan) if memory else {}
    inputs = (_tile_input(tile, rows, plan, clock) for tile in plan.tiles if tile not in known)
    canvas = np.zeros((3, min(side_px, height_px), width_px), np.float32)
    # Closed here, not by the garbage collector: after an error a device may still be at work for it.
    with closing(run_tiles(inputs)) as images:
        for tile in tile_progress(plan.tiles) if tile_progress else plan.tiles:
            image = known[tile] if tile in known else next(images)
            if memory:
                memory.keep(tile, image)
            with clock.stage("blend"):
                _add_tile(canvas, image, tile, factor, weights)
            if tile.column + 1 < len(plan.lefts):
                continue
            count = (*tops, height_px)[tile.row + 1] - tops[tile.row]
            yield from _parts(canvas[:, :count], rows.take(tile.row)[:count])
            with clock.stage("blend"):
                canvas[:, : canvas.shape[1] - count] = canvas[:, count:]
                canvas[:, canvas.shape[1] - count :] = 0


class _EnlargedRows:
    """The enlarged rows of each row of tiles, made when they are first asked for."""

    def __init__(self, enlarger: Enlarger, plan: TilePlan, clock: StageClock) -> None:
        self._enlarger, self._plan, self._clock = enlarger, plan, clock
        self._rows: dict[int, Array] = {}

    def of(self, row: int) -> Array:
        if row not in self._rows:
            factor, top = self._enlarger.upscale_factor, self._plan.tops[row]
            height = min(self._plan.tile_px, self._plan.height_px)
            with self._clock.stage("resize"):
                self._rows[row] = self._enlarger.rows(top * factor, (top + height) * factor)
        return self._rows[row]

    def take(self, row: int) -> Array:
        """As `of`, for the last time."""
        self.of(row)
        return self._rows.pop(row)


def _tile_input(tile: Tile, rows: _EnlargedRows, plan: TilePlan, clock: StageClock) -> Array:
    """A tile's (3, T f, T f) in [-1, 1]."""
    enlarged = rows.of(tile.row)
    factor = len(enlarged) // tile.height
    with clock.stage("resize"):
        unit = unit_part(enlarged, 0, tile.left * factor, tile.height * factor, tile.width * factor)
        return pad_to_square(unit, plan.tile_px * factor) * np.float32(2) - np.float32(1)


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
            rows = _pixels_from_unit(unit, pixels)
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


def _pixels_from_unit(unit: Array, like: Array) -> Array:
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
