"""Give the output the colours of the input: one-step diffusion shifts them. Over the whole picture, never per tile.

Source: METHODS.md section 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from intsr.runtime.networks import Array

WAVELET_LEVELS = 5
_VARIANCE_FLOOR = 1e-5


def fix_colors(image: Array, reference: Iterable[Array], color_fix: str) -> Array:
    """image: (3, H, W) float32 in [0, 1], overwritten. reference: three times (H, W), the enlarged input likewise.

    color_fix: `wavelet`, `adain` or `none`. Returns `image`, not clipped.
    """
    if color_fix == "none":
        return image
    fix = {"adain": _adain_channel, "wavelet": _wavelet_channel}[color_fix]
    # A channel at a time: the temporaries of a large picture are as large as the picture.
    for target, source in zip(image, reference, strict=True):
        target[:] = fix(target, source)
    return image


def _adain_channel(target: Array, source: Array) -> Array:
    """(target - mean_t) / std_t * std_s + mean_s, (H, W) float32; unbiased variances, each plus 1e-5."""
    mean_t, std_t = _mean_and_std(target)
    mean_s, std_s = _mean_and_std(source)
    fixed: Array = (target - np.float32(mean_t)) * np.float32(std_s / std_t) + np.float32(mean_s)
    return fixed


def _mean_and_std(channel: Array) -> tuple[float, float]:
    # In float64: a float32 sum over millions of pixels drifts.
    mean = float(channel.mean(dtype=np.float64))
    variance = float(channel.var(dtype=np.float64, ddof=1)) if channel.size > 1 else 0.0
    return mean, float(np.sqrt(variance + _VARIANCE_FLOOR))


def _wavelet_channel(target: Array, source: Array) -> Array:
    """High frequencies of `target` plus low frequencies of `source`, (H, W) float32.

    With L the five blurs in a row, the high frequencies add up to target - L(target), and L is linear:
    high(target) + low(source) = target + L(source - target).
    """
    low = source - target
    for level in range(WAVELET_LEVELS):
        low = _blur_axis(_blur_axis(low, 2**level, 0), 2**level, 1)
    fixed: Array = target + low
    return fixed


def _blur_axis(channel: Array, dilation: int, axis: int) -> Array:
    """[1 2 1] / 4 with a dilation along an axis, the edge replicated."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (dilation, dilation)
    padded = np.pad(channel, padding, mode="edge")
    length = channel.shape[axis]
    before = padded[:, :length] if axis else padded[:length]
    after = padded[:, 2 * dilation :] if axis else padded[2 * dilation :]
    result: Array = channel * np.float32(0.5)
    result += (before + after) * np.float32(0.25)
    return result
