"""MaxMin: each layer's input range is the smallest and the largest value seen. No training.

Source: METHODS section 6. Streaming: two numbers a layer are kept, never an activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibration import SiteQuantizer
from intsr.calib.observe import run_observed
from intsr.calib.sites import bits_of_site, sites_of_model
from intsr.errors import CalibrationError
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.model import SRModel


class RangeObserver:
    """Running minimum and maximum of a layer's input. Starts at 0: every range holds 0, so padding is exact."""

    def __init__(self, site: str) -> None:
        self.site, self.x_min, self.x_max = site, 0.0, 0.0

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        low, high = (float(end) for end in inputs[0].aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(self.site, "NaN or infinity in its input", "finite activations")
        self.x_min, self.x_max = min(self.x_min, low), max(self.x_max, high)


def observe_maxmin(
    model: SRModel, batches: Iterable[torch.Tensor], bits: Bits, parts: tuple[str, ...]
) -> dict[str, SiteQuantizer]:
    """Run the full-precision model over `batches`, each (N, 3, H, W) float32 in [-1, 1], and return every range.

    Raises CalibrationError for activations that are not finite.
    """
    modules = sites_of_model(model, parts)
    observers = {site: RangeObserver(site) for site in modules}
    run_observed(model, batches, modules, observers)
    quantizers = {}
    for site, observer in observers.items():
        weight_bits, activation_bits = bits_of_site(site, bits)
        quantizers[site] = SiteQuantizer(observer.x_min, observer.x_max, activation_bits, weight_bits)
    return quantizers


def symmetric_range(quantizer: SiteQuantizer) -> SiteQuantizer:
    """The same on a signed grid around 0: codes -2**(b-1) to 2**(b-1) - 1, the larger end at the last one."""
    half = 2 ** (quantizer.activation_bits - 1)
    reach = max(-quantizer.x_min, quantizer.x_max)
    return replace(quantizer, x_min=-reach * half / (half - 1), x_max=reach)
