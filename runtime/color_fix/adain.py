"""`adain`: each channel gets the input's mean and deviation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intsr.arrays import Array

_VARIANCE_FLOOR = 1e-5
# Beyond this many bytes, rows that wait for the picture's statistics wait on disk.
HELD_BYTES = 256 << 20


class AdainFix:
    """(target - mean_t) / std_t * std_s + mean_s by channel; unbiased variances, each plus 1e-5.

    The statistics are the whole picture's: rows wait for them in memory, beyond `HELD_BYTES` on disk.
    """

    def __init__(self, spill_folder: Path | None = None) -> None:
        self._target = [_Moments() for _ in range(3)]
        self._source = [_Moments() for _ in range(3)]
        self._shapes: list[tuple[int, ...]] = []
        folder = str(spill_folder) if spill_folder else None
        self._rows = tempfile.SpooledTemporaryFile(HELD_BYTES, dir=folder)  # noqa: SIM115 - closed by close()

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        for channel, source in enumerate(reference):
            self._target[channel].add(target[channel])
            self._source[channel].add(source)
        self._rows.write(np.ascontiguousarray(target).data)
        self._shapes.append(target.shape)
        return iter(())

    def finish(self) -> Iterator[Array]:
        changes = []
        for target, source in zip(self._target, self._source, strict=True):
            gain = np.float32(source.deviation / target.deviation)
            changes.append((np.float32(target.mean), gain, np.float32(source.mean)))
        self._rows.seek(0)
        for shape in self._shapes:
            rows = np.empty(shape, np.float32)
            if self._rows.readinto(rows.data.cast("B")) != rows.nbytes:
                raise OSError("the temporary file of the colour fix was cut short")
            for channel, (mean_t, gain, mean_s) in zip(rows, changes, strict=True):
                channel -= mean_t
                channel *= gain
                channel += mean_s
            yield rows
        self.close()

    def close(self) -> None:
        self._rows.close()


@dataclass(slots=True)
class _Moments:
    """Mean and sum of squared deviations of values that come in parts.

    Row by row, so that the result does not depend on how the rows came; in float64, as a float32 sum over millions of
    pixels drifts. Source: Chan, Golub and LeVeque, 1979.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, rows: Array) -> None:
        """rows: (h, W)."""
        width = rows.shape[1]
        means = rows.mean(axis=1, dtype=np.float64)
        centered = rows - means[:, None].astype(np.float32)
        # Of the deviations from a rounded mean: their own mean is taken off again.
        shifts = centered.mean(axis=1, dtype=np.float64)
        squares = np.einsum("hw,hw->h", centered, centered, dtype=np.float64) - width * shifts**2
        for mean, square in zip(means.tolist(), squares.tolist(), strict=True):
            total, step = self.count + width, mean - self.mean
            self.squares += square + step * step * self.count * width / total
            self.mean += step * width / total
            self.count = total

    @property
    def deviation(self) -> float:
        variance = max(self.squares, 0.0) / (self.count - 1) if self.count > 1 else 0.0
        return float(np.sqrt(variance + _VARIANCE_FLOOR))
