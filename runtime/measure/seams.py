"""How visible the borders of tiles are in a finished picture, as one number.

    score = mean step across tile borders / mean step between neighbouring lines inside, same direction

A step is the absolute difference of two adjacent rows or columns. The lines beside each border are the control, so
that what the picture itself holds there cancels as far as it goes on; with few borders the score of a clean picture
scatters around 1, so compare it with that of the enlarged input. 1.0 is a picture without seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.runtime.tiles.grid import TilePlan

# Control lines on either side of a border, output pixels away from it: near enough to show the same objects. Whole
# cells of 8 pixels: what a VAE decodes has a faint grid of its own, whose lines tile borders coincide with.
CONTROL_OFFSETS_PX = (8, 16, 24, 32)
# Part of full scale. Below a tenth of an 8-bit level, a ratio of steps says nothing.
_FLOOR = 0.1 / 255


@dataclass(frozen=True, slots=True)
class SeamLine:
    """One border of tiles, between output rows, or columns (`axis`), position_px - 1 and position_px.

    across, control: mean absolute steps there and beside it, as a part of full scale.
    """

    axis: str
    position_px: int
    across: float
    control: float

    @property
    def score(self) -> float:
        """The ratio of the steps."""
        return (self.across + _FLOOR) / (self.control + _FLOOR)


def border_positions(starts: Sequence[int], tile_px: int, length_px: int, upscale_factor: int) -> tuple[int, ...]:
    """Return where tiles of one axis start or end inside the picture, output pixels, ascending."""
    ends = [start + tile_px for start in starts]
    return tuple(sorted({place * upscale_factor for place in (*starts, *ends) if 0 < place < length_px}))


def seam_lines(image: Array, plan: TilePlan, upscale_factor: int) -> tuple[SeamLine, ...]:
    """Measure every tile border of a picture, rows first. image: as for `seam_score`. Raises UsageError."""
    expected = (plan.height_px * upscale_factor, plan.width_px * upscale_factor)
    if image.shape[:2] != expected or image.ndim not in (2, 3):
        got = f"a picture of shape {image.shape}"
        raise UsageError("seam score", got, f"{expected[0]}x{expected[1]} pixels, what the plan's tiles make")
    peak = float(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else 1.0
    lines = []
    for axis, (name, starts, length_px) in enumerate(
        (("row", plan.tops, plan.height_px), ("column", plan.lefts, plan.width_px))
    ):
        positions = border_positions(starts, plan.tile_px, length_px, upscale_factor)
        for position in positions:
            beside = {position + side * offset for offset in CONTROL_OFFSETS_PX for side in (-1, 1)} - set(positions)
            inside = [place for place in sorted(beside) if 0 < place < image.shape[axis]]
            # A picture too narrow for any control has nothing to compare with.
            if inside:
                across, *control = (_step(image, axis, place) / peak for place in (position, *inside))
                lines.append(SeamLine(name, position, across, float(np.mean(control))))
    return tuple(lines)


def seam_score(image: Array, plan: TilePlan, upscale_factor: int) -> float:
    """Return 1.0 where no tile border shows, more the more they do; 1.0 for a picture of one tile, which has none.

    image: the output, (H f, W f) or (H f, W f, C), unsigned integers, or floats in [0, 1]. plan: of the input. The
    steps of all borders are pooled before they are divided. Raises UsageError where the sizes do not belong together.
    """
    lines = seam_lines(image, plan, upscale_factor)
    if not lines:
        return 1.0
    across = float(np.mean([line.across for line in lines]))
    control = float(np.mean([line.control for line in lines]))
    return (across + _FLOOR) / (control + _FLOOR)


def _step(image: Array, axis: int, position: int) -> float:
    """Return the mean absolute difference of the lines on both sides of `position`, in the picture's own unit."""
    first, second = (image.take(place, axis).astype(np.float64) for place in (position - 1, position))
    return float(np.abs(second - first).mean())
