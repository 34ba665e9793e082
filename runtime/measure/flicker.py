"""Flicker: how much an upscaled film changes from frame to frame where the original stands still."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from intsr.arrays import Array

# Rec. 601's weights of red, green and blue, in 256ths: levels of luma without floats.
_LUMA_256 = (77, 150, 29)
# A pixel stands still where neither it nor a neighbour changes by more, in levels of 8 bits: noise of a good camera.
STILL_LEVELS = 2


@dataclass(slots=True)
class FlickerMeter:
    """Sums over pairs of neighbouring frames; feed it both films' frames in order.

    flicker: mean over the still pixels of |change of the output - change of the original|, levels of 8-bit luma. It
    is 0 for an output that is as still as its original.
    """

    still_px: int = 0
    # Of the output and of the original, over the still pixels, and of the difference of the two.
    output_change: float = 0.0
    input_change: float = 0.0
    excess_change: float = 0.0
    _before: tuple[Array, Array] | None = field(default=None, repr=False)

    def add(self, original: Array, output: Array) -> None:
        """original: (H, W, 3), output: (n H, n W, 3) for a whole n, or of any size: rows and columns are then taken
        from the nearest; uint8 or uint16.
        """
        pair = _luma(original), _luma(output)
        if self._before is not None:
            self._add_changes(*(now - before for now, before in zip(pair, self._before, strict=True)))
        self._before = pair

    def _add_changes(self, original: Array, output: Array) -> None:
        rows, columns = (
            np.arange(size) * small // size for size, small in zip(output.shape, original.shape, strict=True)
        )
        still = _still(original)[rows][:, columns]
        count = int(still.sum())
        if not count:
            return
        changes = output[still], original[rows][:, columns][still]
        self.still_px += count
        self.output_change += float(np.abs(changes[0]).sum(dtype=np.int64))
        self.input_change += float(np.abs(changes[1]).sum(dtype=np.int64))
        self.excess_change += float(np.abs(changes[0] - changes[1]).sum(dtype=np.int64))

    def add_repeat(self) -> None:
        """Count a pair of which neither film changes at all."""
        if self._before is not None:
            self.still_px += self._before[1].size

    @property
    def flicker(self) -> float | None:
        """Levels of 8 bits; None where nothing stands still."""
        return self._mean(self.excess_change)

    def _mean(self, total: float) -> float | None:
        return total / self.still_px if self.still_px else None


def _luma(pixels: Array) -> Array:
    """(H, W, 3) uint8 or uint16 -> (H, W) int16, levels of 8 bits."""
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    red, green, blue = (pixels[..., i].astype(np.uint16) * weight for i, weight in enumerate(_LUMA_256))
    return ((red + green + blue) >> 8).astype(np.int16)


def _still(change: Array) -> Array:
    """(H, W) -> (H, W) bool: where neither a pixel nor one of its eight neighbours changes by much."""
    moves = np.pad(np.abs(change) > STILL_LEVELS, 1)
    across = moves[:, :-2] | moves[:, 1:-1] | moves[:, 2:]
    return ~(across[:-2] | across[1:-1] | across[2:])
