"""LET's per-channel scales from what each channel of an input and of the weights reaches. docs/theory.md, "LET".

The overall level of s is free (the grid follows it): its geometric mean is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

LET_LOG_LIMIT = math.log(1e5)  # PassionSR clamps s at 1e-5


def weight_amax(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the largest |W_c| of each input channel, over all weights that read it, (Cin,)."""
    return torch.stack([weight.abs().transpose(0, 1).flatten(1).amax(1) for weight in weights]).amax(0)


def let_scale_from_maxima(
    amax: torch.Tensor, weight: torch.Tensor, alpha: float, beta: float | None = None
) -> torch.Tensor:
    """s = amax**alpha / weight**beta, (Cin,), geometric mean 1; channels that are always zero, or unused, get 1.

    beta: alpha's by default.
    """
    used = (amax > 0) & (weight > 0)
    s = torch.ones_like(amax)
    if used.any():
        # By logarithms: the quotient of a large and a denormal number is infinite.
        exponent = alpha * amax[used].log() - (alpha if beta is None else beta) * weight[used].log()
        s[used] = (exponent - exponent.mean()).clamp(-LET_LOG_LIMIT, LET_LOG_LIMIT).exp()
    return s
