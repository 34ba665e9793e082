"""Flicker: how much an upscaled film changes from frame to frame where the original stands still."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from intsr.arrays import Array

# Rec. 601's weights of red, green and blue, in 256ths: levels of luma without floats.
_LUMA_256 = (77, 150, 29)
# A pixel stands still where neither it nor a neighbour changes by more, in levels of 8 bits: noise of a good camera.
STILL_LEVELS = 2


@dataclass(slots=True)
class FlickerMeter:
    """Sums over pairs of neighbouring frames; feed it both films' frames in order.

    flicker: mean over the still pixels of |change of the output - change of the enlarged original|, levels of 8-bit
    luma: rounding alone, below half a level, for an output that is as still as its original.
    """

    still_px: int = 0
    # Of the output over the still pixels, and of its difference to the original.
    output_change: float = 0.0
    excess_change: float = 0.0
    _before: tuple[Array, Array] | None = field(default=None, repr=False)

    def add(self, original: Array, output: Array) -> None:
        """original: (H, W, 3), output: (H', W', 3) of any size; uint8 or uint16. The original's change is enlarged by
        bicubic to the output's size.
        """
        pair = _luma(original), _luma(output)
        if self._before is not None:
            self._add_changes(*(now - before for now, before in zip(pair, self._before, strict=True)))
        self._before = pair

    def _add_changes(self, original: Array, output: Array) -> None:
        still = _nearest(_still(original), output.shape)
        count = int(still.sum())
        if not count:
            return
        height, width = output.shape
        enlarged = Image.fromarray(original.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        self.still_px += count
        self.output_change += float(np.abs(output[still]).sum(dtype=np.int64))
        self.excess_change += float(np.abs(output - np.asarray(enlarged))[still].sum(dtype=np.float64))

    def add_repeat(self) -> None:
        """Count a pair of which neither film changes at all."""
        if self._before is not None:
            self.still_px += self._before[1].size

    @property
    def flicker(self) -> float | None:
        """Levels of 8 bits; None where nothing stands still."""
        return self.excess_change / self.still_px if self.still_px else None


def _luma(pixels: Array) -> Array:
    """(H, W, 3) uint8 or uint16 -> (H, W) int16, levels of 8 bits."""
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    red, green, blue = (pixels[..., i].astype(np.uint16) * weight for i, weight in enumerate(_LUMA_256))
    return ((red + green + blue) >> 8).astype(np.int16)


def _nearest(values: Array, shape: tuple[int, ...]) -> Array:
    """(H, W) -> shape: each pixel from the one that it lies in."""
    rows, columns = (np.arange(size) * small // size for size, small in zip(shape, values.shape, strict=True))
    nearest: Array = values[rows][:, columns]
    return nearest


def _still(change: Array) -> Array:
    """(H, W) -> (H, W) bool: where neither a pixel nor one of its eight neighbours changes by much."""
    moves = np.pad(np.abs(change) > STILL_LEVELS, 1)
    across = moves[:, :-2] | moves[:, 1:-1] | moves[:, 2:]
    return ~(across[:-2] | across[1:-1] | across[2:])
