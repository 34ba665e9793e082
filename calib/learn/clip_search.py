"""Search clipping ranges: the ends of a grid that lose least, before anything is trained.

Ends are multiplied by factors from 1 down to 1 - REACH, FINE of them, or COARSE where only a comparison is wanted.
docs/theory.md, "Clip search".
"""

from __future__ import annotations

import torch

from intsr.kernels.layer_algebra import fake_quantize_weight, row_range, weight_range
from intsr.kernels.learned_range import quantize_in_range, round_scale_torch
from intsr.kernels.quantizer import SYMMETRIC_BITS

REACH = 0.8  # the narrowest range tried is this much narrower than the widest
FINE, COARSE = 40, 8
SAMPLE_VALUES = 16384


def sample_values(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """At most SAMPLE_VALUES of x's values, flat, and always its smallest and largest."""
    flat = x.flatten()
    if flat.numel() > SAMPLE_VALUES:
        chosen = torch.randint(flat.numel(), (SAMPLE_VALUES,), generator=generator, device=generator.device)
        flat = torch.cat([flat[chosen], torch.stack([flat.min(), flat.max()])])
    return flat


@torch.no_grad()
def search_activation_range(
    values: torch.Tensor, bits: int, symmetric: bool, power: float = 2.0
) -> tuple[float, float]:
    """Ends (low, high) whose grid has the least mean |error|**power over `values` (n,) float32.

    First both ends are shrunk together, then each by itself. A symmetric range is (-r, r) with r searched alone.
    """
    smallest, largest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        smallest, largest = -max(-smallest, largest), max(-smallest, largest)

    def loss(low: float, high: float) -> float:
        if high - low <= 0:
            return float("inf")
        y = quantize_in_range(values, values.new_tensor(low), values.new_tensor(high), bits)
        return float(_powered(y.sub_(values), power).mean())

    if smallest == largest:
        return smallest, largest
    factors = _factors(FINE)
    _, low, high = min((loss(smallest * f, largest * f), smallest * f, largest * f) for f in factors)
    if symmetric:
        return low, high
    _, low = min((loss(smallest * f, high), smallest * f) for f in factors)
    _, high = min((loss(low, largest * f), largest * f) for f in factors)
    return low, high


@torch.no_grad()
def search_weight_range(
    weight: torch.Tensor,
    bits: int,
    importance: torch.Tensor | None = None,
    power: float = 2.0,
    factors_tried: int = FINE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high), (Cout,) each, of the grids with the least error over each output channel's weights.

    importance: (Cin,), what an error in a weight counts, the mean square of its input; all the same by default. At 7
    and 8 bits the range is symmetric. Below, both ends are shrunk together, then each by itself.
    """
    rows = weight.flatten(1)
    counts = torch.ones_like(weight[0]) if importance is None else _expanded(importance, weight)
    low, high = weight_range(*row_range(weight), bits)

    def loss(low_end: torch.Tensor, high_end: torch.Tensor) -> torch.Tensor:
        y = fake_quantize_weight(rows, low_end[:, None], high_end[:, None], bits)
        return _powered(y.sub_(rows), power) @ counts.flatten()

    factors = torch.tensor(_factors(factors_tried), device=rows.device)
    both = factors[torch.stack([loss(low * f, high * f) for f in factors]).argmin(0)]
    if bits >= SYMMETRIC_BITS:
        return low * both, high * both
    of_low = factors[torch.stack([loss(low * f, high * both) for f in factors]).argmin(0)]
    of_high = factors[torch.stack([loss(low * of_low, high * f) for f in factors]).argmin(0)]
    return low * of_low, high * of_high


def _factors(count: int) -> list[float]:
    return [1 - i * REACH / count for i in range(count)]


def _powered(error: torch.Tensor, power: float) -> torch.Tensor:
    return error.square_() if power == 2.0 else error.abs_().pow_(power)


def _expanded(importance: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return importance.reshape(-1, *[1] * (weight.ndim - 2)).expand(weight.shape[1:]).contiguous()


@torch.no_grad()
def lsq_activation_range(values: torch.Tensor, bits: int) -> tuple[float, float]:
    """LSQ's start: D = 2 mean|x| / sqrt(Qp) on a signed grid. docs/theory.md, "Other methods"."""
    top = 2 ** (bits - 1) - 1
    scale = float(round_scale_torch(2 * values.abs().mean() / top**0.5))
    return -scale * (top + 1), scale * top


@torch.no_grad()
def lsq_weight_range(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """LSQ's start for each output channel, symmetric."""
    top = 2 ** (bits - 1) - 1
    reach = 2 * weight.flatten(1).abs().mean(1) / top**0.5 * top
    return -reach, reach
