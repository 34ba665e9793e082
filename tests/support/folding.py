"""A whole model folded at once, which the product never holds."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.pipeline import fold_networks

# By name: encoder, unet, decoder.
Folded: TypeAlias = dict[str, FoldedNetwork]
Modules: TypeAlias = dict[str, nn.Module]


def fold(model: SRModel, calibration: Calibration | None) -> Folded:
    return {network.name: network for network in fold_networks(model, calibration)}
