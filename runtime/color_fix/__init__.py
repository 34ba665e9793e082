"""Give the output the colours of the input: one-step diffusion shifts them. Over the whole picture, never per tile.

The picture comes and goes in bands of rows, top to bottom, so that none of it need be held whole; what comes out has
the same bits however it was cut.

Source: METHODS.md section 1.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.types import COLOR_FIXES

WAVELET_LEVELS = 5
# How far the blurs reach together: 1 + 2 + 4 + 8 + 16 pixels.
WAVELET_REACH_PX = 2**WAVELET_LEVELS - 1
# Columns that are blurred at once: with the rows of a band they should stay in the processor's cache.
_BLOCK_COLUMNS = 1024
_BLOCK_ROWS = 512
_VARIANCE_FLOOR = 1e-5
# Beyond this many bytes, rows that wait for the picture's statistics wait on disk.
HELD_BYTES = 256 << 20


class ColorFix(Protocol):
    """Bands in, bands out, of other heights perhaps. Close it, or use it to its end."""

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        """target: (3, h, W) float32 in [0, 1], which it may overwrite. reference: three times (h, W), the enlarged
        input. Yields fixed bands (3, h', W) float32, not clipped.
        """
        ...

    def finish(self) -> Iterator[Array]:
        """After the last band: what is still held."""
        ...

    def close(self) -> None: ...


def open_color_fix(name: str, spill_folder: Path | None = None) -> ColorFix:
    """name: `wavelet`, `adain` or `none`. spill_folder: where `adain` keeps rows that are too many for memory; None
    for the system's place for temporary files. Raises UsageError.
    """
    if name not in COLOR_FIXES:
        raise UsageError("--color-fix", repr(name), f"one of {', '.join(COLOR_FIXES)}")
    if name == "wavelet":
        return WaveletFix()
    return AdainFix(spill_folder) if name == "adain" else NoFix()


def fix_colors(image: Array, reference: Iterable[Array], color_fix: str) -> Array:
    """image: (3, H, W) float32 in [0, 1], overwritten. reference: three times (H, W), the enlarged input likewise.

    color_fix: `wavelet`, `adain` or `none`. Returns `image`, not clipped. Raises UsageError.
    """
    fix = open_color_fix(color_fix)
    # A copy: what is pushed may be overwritten while it is still needed.
    bands = [*fix.push(image.copy(), reference), *fix.finish()]
    image[:] = np.concatenate(bands, axis=1)
    return image


class NoFix:
    """The colours as the networks made them."""

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        yield target

    def finish(self) -> Iterator[Array]:
        return iter(())

    def close(self) -> None:
        pass


class WaveletFix:
    """High frequencies of the target plus low frequencies of the reference.

    With L the five blurs in a row, the high frequencies add up to target - L(target), and L is linear:
    high(target) + low(reference) = target + L(reference - target). A row of L needs 31 rows on either side.
    """

    def __init__(self) -> None:
        self._targets: deque[Array] = deque()
        self._difference: Array | None = None
        # Rows of `_difference` above the first row that has not been given out.
        self._above = 0

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        difference = np.empty_like(target)
        for channel, source in enumerate(reference):
            np.subtract(source, target[channel], out=difference[channel])
        self._targets.append(target)
        if self._difference is None:
            self._difference = difference
        else:
            self._difference = np.concatenate([self._difference, difference], axis=1)
        yield from self._give_out(self._difference.shape[1] - WAVELET_REACH_PX)

    def finish(self) -> Iterator[Array]:
        if self._difference is not None:
            yield from self._give_out(self._difference.shape[1])

    def _give_out(self, ready: int) -> Iterator[Array]:
        """Rows of `_difference` up to `ready` have all that they need below them."""
        assert self._difference is not None
        while self._targets and self._above < ready:
            target = self._targets.popleft()
            count = min(target.shape[1], ready - self._above)
            if count < target.shape[1]:
                self._targets.appendleft(target[:, count:])
                target = target[:, :count]
            _add_low_frequencies(target, self._difference, self._above)
            self._above += count
            yield target
        drop = max(self._above - WAVELET_REACH_PX, 0)
        # A copy, so that the rows above are freed.
        self._difference = self._difference[:, drop:].copy() if drop else self._difference
        self._above -= drop

    def close(self) -> None:
        self._targets.clear()
        self._difference = None


def _add_low_frequencies(target: Array, difference: Array, first: int) -> None:
    """target: (3, h, W), rows [first, first + h) of the difference's. Adds L(difference) to it, block by block."""
    rows, columns = difference.shape[1:]
    for channel in range(len(target)):
        for top in range(first, first + target.shape[1], _BLOCK_ROWS):
            bottom = min(top + _BLOCK_ROWS, first + target.shape[1])
            above, below = max(top - WAVELET_REACH_PX, 0), min(bottom + WAVELET_REACH_PX, rows)
            for left in range(0, columns, _BLOCK_COLUMNS):
                right = min(left + _BLOCK_COLUMNS, columns)
                start, stop = max(left - WAVELET_REACH_PX, 0), min(right + WAVELET_REACH_PX, columns)
                low = _low_frequencies(difference[channel, above:below, start:stop])
                part = low[top - above : bottom - above, left - start : right - start]
                target[channel, top - first : bottom - first, left:right] += part


def _low_frequencies(block: Array) -> Array:
    """The five blurs of (h, w) float32 -> (h, w): right where nothing nearer than 31 pixels was cut away."""
    current, other = block.copy(), np.empty(block.shape, np.float32)
    for level in range(WAVELET_LEVELS):
        for axis in (0, 1):
            _blur_axis(current, 2**level, axis, other)
            current, other = other, current
    return current


def _blur_axis(block: Array, dilation: int, axis: int, result: Array) -> None:
    """[1 2 1] / 4 with a dilation along an axis, the edge replicated."""
    if axis == 1:
        block, result = block.T, result.T
    length = len(block)
    np.multiply(block, np.float32(0.5), out=result)
    if length <= 2 * dilation:
        indices = np.arange(length)
        neighbours = block[np.maximum(indices - dilation, 0)] + block[np.minimum(indices + dilation, length - 1)]
        neighbours *= np.float32(0.25)
        result += neighbours
        return
    for inside, before, after in (
        (slice(0, dilation), slice(0, 1), slice(dilation, 2 * dilation)),
        (slice(dilation, -dilation), slice(0, -2 * dilation), slice(2 * dilation, None)),
        (slice(-dilation, None), slice(-2 * dilation, -dilation), slice(-1, None)),
    ):
        neighbours = block[before] + block[after]
        neighbours *= np.float32(0.25)
        result[inside] += neighbours


class AdainFix:
    """(target - mean_t) / std_t * std_s + mean_s by channel; unbiased variances, each plus 1e-5.

    The statistics are the whole picture's: rows wait for them in memory, beyond `HELD_BYTES` in a temporary file.
    """

    def __init__(self, spill_folder: Path | None = None) -> None:
        self._target = [_Moments() for _ in range(3)]
        self._source = [_Moments() for _ in range(3)]
        self._rows = _WaitingRows(spill_folder)

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        for channel, source in enumerate(reference):
            self._target[channel].add(target[channel])
            self._source[channel].add(source)
        self._rows.append(target)
        return iter(())

    def finish(self) -> Iterator[Array]:
        # Rows of their own size, however the bands were cut.
        changes = []
        for target, source in zip(self._target, self._source, strict=True):
            gain = np.float32(source.deviation / target.deviation)
            changes.append((np.float32(target.mean), gain, np.float32(source.mean)))
        for rows in self._rows:
            for channel, (mean_t, gain, mean_s) in zip(rows, changes, strict=True):
                channel -= mean_t
                channel *= gain
                channel += mean_s
            yield rows

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


class _WaitingRows:
    """Bands (3, h, W) float32, given back in order, once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._held, self._shapes = folder, deque[Array](), deque[tuple[int, ...]]()
        self._held_bytes = 0
        self._file: IO[Any] | None = None

    def append(self, rows: Array) -> None:
        if self._held_bytes + rows.nbytes <= HELD_BYTES and self._file is None:
            self._held.append(rows)
            self._held_bytes += rows.nbytes
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by close()
        self._file.write(np.ascontiguousarray(rows).data)
        self._shapes.append(rows.shape)

    def __iter__(self) -> Iterator[Array]:
        while self._held:
            yield self._held.popleft()
        if self._file is not None:
            self._file.seek(0)
            while self._shapes:
                shape = self._shapes.popleft()
                rows = np.empty(shape, np.float32)
                if self._file.readinto(rows.data.cast("B")) != rows.nbytes:  # type: ignore[attr-defined]
                    raise OSError("the temporary file of the colour fix was cut short")
                yield rows
        self.close()

    def close(self) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
