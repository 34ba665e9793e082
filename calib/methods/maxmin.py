"""MaxMin: each layer's input range is what it reaches, as a mean over pictures. No training.

The literature takes the extremes of all pictures: see `observe.hooks.ChannelRanges`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.learn.method import PICTURE, VIDEO, Method
from intsr.calib.models.families.sd21 import bits_of_site
from intsr.calib.observe.hooks import observe_ranges
from intsr.calib.observe.video import observe_video
from intsr.types import Bits

if TYPE_CHECKING:
    import torch

    from intsr.calib.models.open import SRModel


def observe_maxmin(
    model: SRModel,
    batches: Iterable[torch.Tensor],
    bits: Bits,
    parts: tuple[str, ...],
    guard: Iterable[torch.Tensor] = (),
) -> dict[str, SiteQuantizer]:
    """Run the full-precision model over `batches` and return every range.

    batches: one a picture, (N, 3, H, W) float32 in [-1, 1]. guard: see `observe.hooks.ChannelRanges`.
    Raises CalibrationError for activations that are not finite.
    """
    quantizers = {}
    for site, observer in observe_ranges(model, batches, guard, parts).items():
        weight_bits, activation_bits = bits_of_site(site, bits)
        quantizers[site] = SiteQuantizer(*observer.range_of(), activation_bits, weight_bits)
    return quantizers


def symmetric_range(quantizer: SiteQuantizer) -> SiteQuantizer:
    """The same on a signed grid around 0: codes -2**(b-1) to 2**(b-1) - 1, the larger end at the last one."""
    half = 2 ** (quantizer.activation_bits - 1)
    amax = max(-quantizer.x_min, quantizer.x_max)
    return replace(quantizer, x_min=-amax * half / (half - 1), x_max=amax)


METHOD = Method("maxmin", observe_maxmin, observe_video, kinds=(PICTURE, VIDEO))
