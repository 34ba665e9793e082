from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from folding import Folded, Modules, fold

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.sd21 import MIN_INTEGER_CHANNELS
from intsr.calib.models.modules import layers_of
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.errors import CalibrationError
from intsr.export.fold.fold import fake_quantized
from intsr.kernels.quantizer import dequantize_weight
from intsr.types import NETWORKS


def test_which_layers_are_integer(tiny_folded: Folded) -> None:
    for network in tiny_folded.values():
        for site, module in layers_of(network.module).items():
            wide = min(module.weight.shape[:2]) >= MIN_INTEGER_CHANNELS
            assert (site in network.layers) == wide, site
    assert "vae.encoder.conv_in" not in tiny_folded["encoder"].layers
    assert "vae.encoder.mid_block.attentions.0.to_q" in tiny_folded["encoder"].layers


def test_integer_weights_are_the_specialized_ones(tiny_folded: Folded, tiny_specialized: Modules) -> None:
    for name, network in tiny_folded.items():
        modules = layers_of(tiny_specialized[name])
        for site, layer in network.layers.items():
            weight = modules[site].weight.numpy()
            error = np.abs(dequantize_weight(layer.weight_codes, layer.weight_scale) - weight)
            step = layer.weight_scale.reshape(-1, *[1] * (weight.ndim - 1))
            # A scale rounded down in its 11th bit clips the largest weights by a little.
            assert (error <= step * (0.5 + 127 * 2**-11)).all(), site


def test_only_the_parts_asked_for(tiny_model: SRModel, tiny_calibration: Calibration) -> None:
    folded = fold(tiny_model, replace(tiny_calibration, parts=("unet",)))
    assert not folded["encoder"].layers and not folded["decoder"].layers
    assert folded["unet"].layers


def test_without_calibration_nothing_is_quantized(tiny_model: SRModel) -> None:
    folded = fold(tiny_model, None)
    assert not any(network.layers for network in folded.values())
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    for name, module in reference_networks(tiny_model).items():
        with torch.no_grad():
            expected = module(x)
            got = fake_quantized(folded[name])(x)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
        x = expected


def test_eight_bits_stay_near_full_precision(tiny_folded: Folded, tiny_specialized: Modules) -> None:
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        for name in NETWORKS:
            expected = tiny_specialized[name](x)
            got = fake_quantized(tiny_folded[name])(x)
            ratio_db = 10 * torch.log10(expected.var() / (got - expected).var())
            assert ratio_db > 20, name
            assert not torch.equal(got, expected), f"{name}: nothing was quantized"
            x = expected


def test_post_quant_conv_range_follows_the_folded_factor(
    tiny_model: SRModel, tiny_calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Specialization scales that layer's input by f: so its grid must scale too. Forced integer here to see it."""
    monkeypatch.setattr("intsr.calib.models.sites.MIN_INTEGER_CHANNELS", 1)
    folded = fold(tiny_model, tiny_calibration)
    grid = folded["decoder"].layers["vae.post_quant_conv"].activation
    site = tiny_calibration.sites["vae.post_quant_conv"]
    factor = tiny_model.spec.latent_scaling_factor
    assert grid.real_max - grid.real_min == pytest.approx((site.x_max - site.x_min) * factor, rel=2e-3)


def test_a_missing_layer(tiny_model: SRModel, tiny_calibration: Calibration) -> None:
    sites = dict(tiny_calibration.sites)
    del sites["unet.mid_block.resnets.0.conv1"]
    with pytest.raises(CalibrationError, match=r"no range for unet\.mid_block\.resnets\.0\.conv1"):
        fold(tiny_model, replace(tiny_calibration, sites=sites))
