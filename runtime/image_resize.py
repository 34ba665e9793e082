"""Rows of pixels resized on their way, by Pillow's Lanczos: to any size, with a few rows in memory.

Pillow resizes along x first, row by row, then along y, where a row of the result depends on a few rows around it. Its
arithmetic is kept: 8-bit values are rounded between the two. Transparency is resized apart from the colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from intsr.runtime.networks import Array

# Lanczos reaches three pixels far, of the coarser of the two pictures; one more for rounding.
_SUPPORT, _ROUNDING = 3, 1
# Rows of the result made in one go. Always the same ones, so that the bits do not depend on how the rows came in.
_STEP = 64


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
        self._rows.append(_by_planes(rows, (self._new_width, len(rows)), None))
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
        return made


def _by_planes(rows: Array, size: tuple[int, int], box: tuple[float, float, float, float] | None) -> Array:
    """(h, W, C) -> (h', W', C). Three channels go through Pillow together, others one by one."""
    if rows.dtype == np.uint8 and rows.shape[2] >= 3:
        made = [_resized(rows[..., :3], size, box), *(_resized(rows[..., 3], size, box) for _ in rows[0, 0, 3:])]
    else:
        made = [_resized(rows[..., channel], size, box) for channel in range(rows.shape[2])]
    return np.dstack(made)


def _resized(part: Array, size: tuple[int, int], box: tuple[float, float, float, float] | None) -> Array:
    # 16-bit values in 32-bit floats, which hold them exactly; Pillow clips none of them.
    values = part.astype(np.float32) if part.dtype == np.uint16 else np.ascontiguousarray(part)
    made = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.LANCZOS, box))
    return np.clip(np.rint(made), 0, 65535).astype(np.uint16) if part.dtype == np.uint16 else made
