"""MaxMin of equalized inputs: LET without training, from what each channel reaches.

s = max|x_c|**a / max|W_c|**a, d = 0 (docs/theory.md, "LET"). Sites that share one input share one s, so that it folds
into the norm in front of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.learn.method import Method
from intsr.calib.models.families.sd21 import bits_of_site, input_groups
from intsr.calib.models.sites import sites_of_model
from intsr.calib.observe.hooks import observe_ranges
from intsr.calib.observe.let_scales import let_scale_from_maxima, weight_amax
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

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
    """Return MaxMin ranges of equalized inputs, with s for every site of `parts`. One pass.

    batches, guard: as of `observe_maxmin`. Raises CalibrationError for activations that are not finite.
    """
    modules = sites_of_model(model, parts)
    observers = observe_ranges(model, batches, guard, parts)
    quantizers: dict[str, SiteQuantizer] = {}
    for group in input_groups(modules):
        # One s for all sites of a group: they see the same tensor, and the largest of their weights counts.
        observer = observers[group[0]]
        s = let_scale_from_maxima(observer.amax(), weight_amax(modules[site].weight for site in group), ALPHA)
        x_min, x_max = observer.range_of(s)
        for site in group:
            weight_bits, activation_bits = bits_of_site(site, bits)
            let = s.numpy(), torch.zeros_like(s).numpy()
            quantizers[site] = SiteQuantizer(x_min, x_max, activation_bits, weight_bits, *let)
    return {site: quantizers[site] for site in modules}


METHOD = Method("maxmin+let", observe_let)
