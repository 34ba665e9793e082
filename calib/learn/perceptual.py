"""What stands in for LPIPS where its weights are not at hand: structure and edges at several scales.

    d = 1/S  sum over scales of  (1 - mean SSIM of 8 x 8 windows)  +  EDGES mean |grad a - grad b|

Each scale is half of the one before, by averages of 2 x 2 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch.nn import functional

from intsr.calib.learn.lpips import Lpips

SCALES = 3
WINDOW = 8
# What makes both terms about as large on photographs of few bits.
EDGES = 4.0
# SSIM's constants, for pictures in [0, 1].
C1, C2 = 0.01**2, 0.03**2


STRUCTURE, LPIPS = "structure and edges", "lpips"
Distance: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def distance_from_file(lpips: Path | None, device: str = "cpu") -> Distance:
    """LPIPS with the weights of that file, or what stands in for it. Raises ModelError."""
    return perceptual_distance if lpips is None else Lpips(lpips, device)


def perceptual_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How different two pictures look: (N, 3, H, W) float32 in [-1, 1] each, sides of at least 32 -> scalar, 0 for
    equal ones."""
    # SSIM's mean term is about levels of light, which have no sign.
    a, b, total = (a + 1) / 2, (b + 1) / 2, a.new_zeros(())
    for scale in range(SCALES):
        if scale:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        total = total + _structure(a, b) + _edges(a, b)
    return total / SCALES


def _structure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, WINDOW, WINDOW // 2)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    ssim = (2 * mean_a * mean_b + C1) * (2 * covariance + C2) / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return 1 - ssim.mean()


def _edges(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    difference = a - b
    return EDGES * sum((difference.diff(dim=axis).abs().mean() for axis in (2, 3)), a.new_zeros(())) / 2
