"""Fold a calibration into a specialized network of a video model."""

from __future__ import annotations

import torch
from torch import nn

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import is_integer_video_site
from intsr.calib.models.modules import video_layers_of
from intsr.errors import CalibrationError
from intsr.export.fold.fold import FoldedLayer, FoldedNetwork
from intsr.export.fold.video.types import SpecializedVideoNetwork


def fold_video_network(network: SpecializedVideoNetwork, calibration: Calibration | None) -> FoldedNetwork:
    """Quantize the weights of every layer that engines run on integers; all stays float without a calibration.

    Codes are those of the specialized weights: what a row is multiplied by goes into its scale, and leaves its codes
    as they are, or negative. `network` is used up: float weights go as soon as codes are made of them. Raises
    CalibrationError where the calibration lacks a layer of its own parts.
    """
    module, layers = network.module, dict[str, FoldedLayer]()
    part = "transformer" if network.name == "transformer" else "vae"
    if calibration is None or part not in calibration.parts:
        return FoldedNetwork(network.name, module, layers)
    for site, layer in video_layers_of(module).items():
        if not is_integer_video_site(site):
            continue
        quantizer = calibration.sites.get(site)
        if quantizer is None:
            raise CalibrationError(calibration.method, f"no range for {site}", "every layer", "calibrate again")
        codes, scale = quantizer.quantize_weight(layer.weight.detach().numpy())
        layers[site] = FoldedLayer(site, codes, scale, quantizer.activation_params())
        # Shapes are all that is still asked of it: one number stands for all, one that no graph may hold.
        layer.weight = nn.Parameter(torch.full((1,), torch.nan).expand(layer.weight.shape), requires_grad=False)
    return FoldedNetwork(network.name, module, layers)
