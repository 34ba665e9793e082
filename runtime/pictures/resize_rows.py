"""Rows of pixels resized on their way, by Pillow's Lanczos: to any size, with a few rows in memory.

First along x, row by row, then along y, where a row of the result depends on a few rows around it: as Pillow does it
in two calls. 8-bit values are rounded between the two. Transparency is resized apart from the colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from intsr.arrays import Array

# Lanczos reaches three pixels far, of the coarser of the two pictures; one more for rounding.
_SUPPORT, _ROUNDING = 3, 1
# Rows of the result made in one go. Always the same ones, so that the bits do not depend on how the rows came in.
_STEP = 64
_PEAK_16 = 65535


class RowResizer:
    """Takes rows of a picture from top to bottom, gives rows of the resized one."""

    def __init__(self, size: tuple[int, int], new_size: tuple[int, int]) -> None:
        """(width, height) of both pictures."""
        (_, self._height), (self._new_width, self._new_height) = size, new_size
        self._scale = self._height / self._new_height
        self._reach = _SUPPORT * max(self._scale, 1.0) + _ROUNDING
        # Rows of the input, resized along x already; the number of the first; rows given so far.
        self._rows: list[Array] = []
        self._first, self._given = 0, 0

    def put(self, rows: Array) -> Iterator[Array]:
        """rows: (h, W, C) uint8 or uint16 -> any number of (h', W', C), all together in the end."""
        # Pillow clips 16-bit values nowhere: floats hold them, and what Lanczos makes of them, until the end.
        values = rows.astype(np.float32) if rows.dtype == np.uint16 else rows
        self._rows.append(_by_planes(values, (self._new_width, len(rows)), None))
        available = self._first + sum(map(len, self._rows))
        while self._given < self._new_height:
            bottom = min(self._given + _STEP, self._new_height)
            needed = min(math.ceil(bottom * self._scale + self._reach), self._height)
            if needed > available:
                return
            yield self._take(bottom, needed)

    def _take(self, bottom: int, needed: int) -> Array:
        window = np.concatenate(self._rows) if len(self._rows) > 1 else self._rows[0]
        top_edge, bottom_edge = (row * self._scale - self._first for row in (self._given, bottom))
        used = window[: needed - self._first]
        box = (0.0, top_edge, float(self._new_width), min(bottom_edge, float(len(used))))
        made = _by_planes(used, (self._new_width, bottom - self._given), box)
        self._given = bottom
        unneeded = max(math.floor(bottom * self._scale - self._reach) - self._first, 0)
        self._rows, self._first = [window[unneeded:]], self._first + unneeded
        return made if made.dtype == np.uint8 else np.clip(np.rint(made), 0, _PEAK_16).astype(np.uint16)


def _by_planes(rows: Array, size: tuple[int, int], box: tuple[float, float, float, float] | None) -> Array:
    """(h, W, C) uint8 or float32 -> (h', W', C). Three 8-bit channels go through Pillow together."""
    together = 3 if rows.dtype == np.uint8 and rows.shape[2] >= 3 else 0
    parts = [rows[..., :3]] if together else []
    parts += [rows[..., channel] for channel in range(together, rows.shape[2])]
    images = (Image.fromarray(np.ascontiguousarray(part)) for part in parts)
    return np.dstack([np.asarray(image.resize(size, Image.Resampling.LANCZOS, box)) for image in images])
