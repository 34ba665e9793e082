"""A whole model folded at once, which the product never holds."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.export.fold.fold import FoldedNetwork, fake_quantized
from intsr.export.pipeline import fold_networks

# By name: encoder, unet, decoder.
Folded: TypeAlias = dict[str, FoldedNetwork]
Modules: TypeAlias = dict[str, nn.Module]


def fold(model: SRModel, calibration: Calibration | None) -> Folded:
    return {network.name: network for network in fold_networks(model, calibration)}


@torch.no_grad()
def distance(model: SRModel, calibration: Calibration) -> float:
    """Mean square difference to full precision, end to end, on a picture of its own."""
    exact = value = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(9)) * 1.2 - 0.6
    for name, network in fold(model, calibration).items():
        value, exact = fake_quantized(network)(value), reference_networks(model)[name](exact)
    return float((value - exact).square().mean())
