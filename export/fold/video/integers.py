"""Fold a calibration into a specialized network of a video model."""

from __future__ import annotations

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import is_integer_video_site
from intsr.calib.models.modules import video_layers_of
from intsr.export.fold.fold import FoldedNetwork, fold_layers
from intsr.export.fold.video.types import SpecializedVideoNetwork


def fold_video_network(network: SpecializedVideoNetwork, calibration: Calibration | None) -> FoldedNetwork:
    """Quantize the weights of every layer that engines run on integers; all stays float without a calibration.

    `network` is used up: see `fold_layers`. Raises CalibrationError where the calibration lacks a layer of its own
    parts.
    """
    module, part = network.module, "transformer" if network.name == "transformer" else "vae"
    if calibration is None or part not in calibration.parts:
        return FoldedNetwork(network.name, module, {})
    integer = {site: layer for site, layer in video_layers_of(module).items() if is_integer_video_site(site)}
    layers = fold_layers(module, integer, calibration, network.plain_weights, network.row_factors)
    return FoldedNetwork(network.name, module, layers)
