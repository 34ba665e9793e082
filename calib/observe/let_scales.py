"""LET without training: per-channel scales from what each channel reaches, and ranges of what comes out.

Source: METHODS section 2, "LET": s = max|x_c|**a / max|W_c|**a, d = 0. Sites that share one input share one s, so
that it folds into the norm in front of them. The overall level of s is free (the grid follows it): its geometric mean
is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.models.families.sd21 import bits_of_site, input_groups
from intsr.calib.models.sites import sites_of_model
from intsr.calib.observe.hooks import ChannelEnds, observe_ends
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

LET_LOG_LIMIT = math.log(1e5)  # METHODS clamps s at 1e-5
# Share of the differences between channels that moves from activations to weights. Measured on the demonstration
# model, dB against full precision at W8A8 and W6A6: 0.3: 48.6, 35.4; 0.5: 49.3, 36.1; 0.75: 49.6, 36.1; 1: 47.4, 33.7
# (MaxMin alone: 45.7, 33.2). PassionSR starts its training at 0.3.
ALPHA = 0.5


def observe_let(
    model: SRModel,
    batches: Iterable[torch.Tensor],
    bits: Bits,
    parts: tuple[str, ...],
    guard: Iterable[torch.Tensor] = (),
) -> dict[str, SiteQuantizer]:
    """MaxMin ranges of equalized inputs, with s for every site of `parts`. One pass.

    batches, guard: as of `observe_maxmin`. Raises CalibrationError for activations that are not finite.
    """
    modules = sites_of_model(model, parts)
    observers = observe_ends(model, batches, guard, parts)
    quantizers: dict[str, SiteQuantizer] = {}
    for group in input_groups(modules):
        quantizers |= _equalized_group(group, modules, observers[group[0]], bits)
    return {site: quantizers[site] for site in modules}


def _equalized_group(
    group: tuple[str, ...], modules: Mapping[str, nn.Conv2d | nn.Linear], observer: ChannelEnds, bits: Bits
) -> dict[str, SiteQuantizer]:
    """One s for all sites of a group: they see the same tensor, and the largest of their weights counts."""
    weight = torch.stack([modules[site].weight.abs().transpose(0, 1).flatten(1).amax(1) for site in group]).amax(0)
    s = let_scale_from_maxima(observer.reach(), weight, ALPHA)
    x_min, x_max = observer.range_of(s)
    result = {}
    for site in group:
        weight_bits, activation_bits = bits_of_site(site, bits)
        let = s.numpy(), torch.zeros_like(s).numpy()
        result[site] = SiteQuantizer(x_min, x_max, activation_bits, weight_bits, *let)
    return result


def let_scale_from_maxima(reach: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """s = reach**a / weight**a, (Cin,), geometric mean 1; channels that are always zero, or unused, get 1."""
    used = (reach > 0) & (weight > 0)
    s = torch.ones_like(reach)
    if used.any():
        # By logarithms: the quotient of a large and a denormal number is infinite.
        exponent = alpha * (reach[used].log() - weight[used].log())
        s[used] = (exponent - exponent.mean()).clamp(-LET_LOG_LIMIT, LET_LOG_LIMIT).exp()
    return s
