"""Static square tiles over a picture, and weights that blend them without seams.

Weights are separable and normalised on each axis: at every pixel, the weights of all tiles sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the low-resolution picture, in pixels. row, column: its place in the plan."""

    top: int
    left: int
    height: int
    width: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class TilePlan:
    """tops, lefts: where tiles start, low-resolution pixels, ascending. A tile is `tile_px` square, less where the
    picture itself is smaller.
    """

    height_px: int
    width_px: int
    tile_px: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def redundancy(self) -> float:
        """How many times as many pixels as the picture has go through the networks."""
        return len(self.tops) * len(self.lefts) * self.tile_px**2 / (self.height_px * self.width_px)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        height, width = min(self.tile_px, self.height_px), min(self.tile_px, self.width_px)
        return tuple(
            Tile(top, left, height, width, row, column)
            for row, top in enumerate(self.tops)
            for column, left in enumerate(self.lefts)
        )


def tile_starts(length_px: int, tile_px: int, overlap_px: int) -> tuple[int, ...]:
    """Return starts of as few tiles as cover an axis sharing `overlap_px`, spread evenly: most share more."""
    last = max(length_px - tile_px, 0)
    steps = -(-last // (tile_px - overlap_px))
    return (*(last * i // steps for i in range(steps)), last)


def plan_tiles(height_px: int, width_px: int, tile_px: int, overlap_px: int) -> TilePlan:
    """Raises UsageError for an overlap that is negative or not below the tile."""
    if not 0 <= overlap_px < tile_px:
        raise UsageError("--overlap", f"{overlap_px} pixels", f"0 to {tile_px - 1}, below the engine's tile")
    tops, lefts = (tile_starts(length_px, tile_px, overlap_px) for length_px in (height_px, width_px))
    return TilePlan(height_px, width_px, tile_px, tops, lefts)


def blend_weights(starts: tuple[int, ...], size_px: int, length_px: int) -> list[Array]:
    """Return a weight vector (size_px,) float32 a tile on an axis of `length_px`; at each pixel they sum to 1.

    Raised-cosine ramps as wide as the overlap with each neighbour: a tile counts least at its edge, where padding
    inside the network makes it worst.
    """
    size_px = min(size_px, length_px)
    total = np.zeros(length_px, np.float64)
    ramps = []
    for index, start in enumerate(starts):
        before = starts[index - 1] + size_px - start if index else 0
        after = start + size_px - starts[index + 1] if index + 1 < len(starts) else 0
        weights = _ramp(size_px, before) * _ramp(size_px, after)[::-1]
        total[start : start + size_px] += weights
        ramps.append(weights)
    return [
        (ramp / total[start : start + size_px]).astype(np.float32) for start, ramp in zip(starts, ramps, strict=True)
    ]


def plan_weights(plan: TilePlan, upscale_factor: int) -> tuple[list[Array], list[Array]]:
    """Return `blend_weights` of the enlarged picture, by row and by column of tiles."""
    side_px = plan.tile_px * upscale_factor
    axes = (plan.tops, plan.height_px), (plan.lefts, plan.width_px)
    rows, columns = (
        blend_weights(tuple(start * upscale_factor for start in starts), side_px, length_px * upscale_factor)
        for starts, length_px in axes
    )
    return rows, columns


def _ramp(size_px: int, width_px: int) -> Array:
    """(size_px,) float64: from nearly 0 to 1 over `width_px` pixels, then 1."""
    positions = (np.arange(size_px) + 0.5) / max(width_px, 1)
    return np.where(np.arange(size_px) < width_px, 0.5 - 0.5 * np.cos(np.pi * np.minimum(positions, 1.0)), 1.0)


def pad_to_square(array: Array, side_px: int) -> Array:
    """(3, H, W) -> (3, side, side): reflected at the bottom and right, the edge repeated where H or W is 1."""
    _, height, width = array.shape
    if (height, width) == (side_px, side_px):
        return array
    return np.pad(array, ((0, 0), (0, side_px - height), (0, side_px - width)), mode="reflect")
