"""What the networks made of the last frame of a film: where a tile's pixels are the same, so is its result."""

from __future__ import annotations

import numpy as np

from intsr.arrays import Array
from intsr.runtime.tiles.enlarge import CONTEXT_PX
from intsr.runtime.tiles.grid import Tile, TilePlan


class TileMemory:
    """The tiles of one frame after the other, each exact: a network gives the same numbers for the same input.

    A tile's input is enlarged from its own pixels and a few around them; these are compared, not the input. It holds
    a frame, and the results (3, T f, T f) float32 of all of its tiles.
    """

    def __init__(self) -> None:
        self._pixels: Array | None = None
        self._results: dict[Tile, Array] = {}
        # How many of the last frame's tiles were taken from here.
        self.recalled = 0

    def recall(self, pixels: Array, plan: TilePlan) -> dict[Tile, Array]:
        """Return the results that hold for this frame as well, and forget the others. pixels: (H, W, 3), of the size
        and in the plan of the last frame.
        """
        before, tiles = self._pixels, plan.tiles
        self._pixels = pixels
        known = {}
        if before is not None:
            known = {
                tile: self._results[tile]
                for tile in tiles
                if tile in self._results and np.array_equal(_around(tile, before), _around(tile, pixels))
            }
        self._results, self.recalled = dict(known), len(known)
        return known

    def keep(self, tile: Tile, result: Array) -> None:
        """result: (3, T f, T f) of this frame's tile."""
        if tile not in self._results:
            # A copy: where several tiles are computed at once, it is a part of their whole.
            self._results[tile] = result.copy()


def _around(tile: Tile, pixels: Array) -> Array:
    top, left = max(tile.top - CONTEXT_PX, 0), max(tile.left - CONTEXT_PX, 0)
    return pixels[top : tile.top + tile.height + CONTEXT_PX, left : tile.left + tile.width + CONTEXT_PX]
