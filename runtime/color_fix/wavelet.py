"""`wavelet`: the output's high frequencies over the input's low ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from intsr.arrays import Array

WAVELET_LEVELS = 5
# How far the blurs reach together: 1 + 2 + 4 + 8 + 16 pixels.
WAVELET_REACH_PX = 2**WAVELET_LEVELS - 1
# Columns that are blurred at once: with the rows of a band they should stay in the processor's cache.
_BLOCK_COLUMNS = 1024
_BLOCK_ROWS = 512


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
