"""Learned weight ranges and codes through folding: what training quantized, times what rows were multiplied by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from folding import Folded, fold
from learned import calibration_of, exact_model, move_off_midpoints, random_layers
from numpy.typing import NDArray

from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers
from intsr.calib.models.open import SRModel
from intsr.export.fold.fold import FoldedLayer, _multiplied
from intsr.kernels.quantizer import dequantize_weight, rescale
from intsr.types import Bits


def expected_factors(layers: dict[str, QuantizedLayer]) -> dict[str, NDArray[np.float64]]:
    """Site -> what each row of its weights is multiplied by, from the rules and not from the code."""
    factors = {site: np.ones(len(layer.layer.weight)) for site, layer in layers.items()}
    for site, layer in layers.items():
        s = layer.grid.scale().numpy()
        if site.endswith("attn2.to_out.0"):
            continue  # behind a constant value
        if site.endswith("to_out.0"):
            factors[site.replace("to_out.0", "to_v")] /= s
        elif site.endswith("ff.net.2"):
            factors[site.replace("net.2", "net.0.proj")][: len(s)] /= s
    return factors


def folded_layers(folded: Folded) -> dict[str, FoldedLayer]:
    return {site: layer for network in folded.values() for site, layer in network.layers.items()}


@pytest.mark.parametrize("weights", ["ranges", "rounding", "low_rank"])
@pytest.mark.parametrize("let", ["none", "channel"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(7, 8), Bits(4, 6)], ids=str)
def test_what_training_held_is_what_engines_hold(tiny_model: SRModel, bits: Bits, let: str, weights: str) -> None:
    model = exact_model(tiny_model)
    layers = random_layers(model, bits, let, weights=weights)
    folded, factors = folded_layers(fold(model, calibration_of(layers, model, bits))), expected_factors(layers)
    assert set(folded) == set(layers)
    for site, layer in layers.items():
        weight = layer.quantized_weight().numpy()
        expected = weight * factors[site].reshape(-1, *[1] * (weight.ndim - 1))
        got = dequantize_weight(folded[site].weight_codes, folded[site].weight_scale)
        np.testing.assert_array_equal(got, expected, err_msg=site)
    rows = [site for site in factors if site.endswith((".to_v", "net.0.proj"))]
    assert rows and all((set(factors[site]) == {1}) == (let == "none") for site in rows)


@pytest.mark.parametrize("weights", ["ranges", "rounding"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 6)], ids=str)
def test_any_factor_costs_one_rounding_of_the_scale(tiny_model: SRModel, bits: Bits, weights: str) -> None:
    """fp16 holds the product of D and all factors less exactly, to half a step of it; no code moves."""
    model = replace(exact_model(tiny_model), spec=tiny_model.spec)
    layers = random_layers(model, bits, "channel", weights=weights, exact=False)
    for layer in layers.values():
        move_off_midpoints(layer)  # where float64 here and float32 there may differ
    folded = folded_layers(fold(model, calibration_of(layers, model, bits)))
    factors = expected_factors(layers)
    for site in layers:
        codes, scale = folded[site].weight_codes.astype(int), folded[site].weight_scale
        rows = factors[site]
        trained_scale = layers[site].weight_grid()[0]
        trained = (layers[site].quantized_weight() / trained_scale).round().numpy()
        np.testing.assert_array_equal(scale, rescale(trained_scale.flatten().numpy(), rows), site)
        assert np.array_equal(codes, trained * np.sign(rows).reshape(-1, *[1] * (codes.ndim - 1))), site


@pytest.mark.parametrize("weights", ["none", "ranges"])
@pytest.mark.parametrize("let", ["none", "channel"])
def test_codes_of_a_float32_model_are_those_of_the_simulation(tiny_model: SRModel, let: str, weights: str) -> None:
    """With the model's own numbers, whatever the factors: LET in rows, norms and a step of its own, the latents'."""
    layers = quantized_layers(tiny_model, Bits(8, 8), ("unet", "vae"), let=let)
    rng = np.random.default_rng(1)
    for layer in layers.values():
        if let == "channel" and not layer.grid.base_scale.ne(1).any():
            s = torch.from_numpy(rng.uniform(0.25, 4, layer.grid.spec.channels).astype(np.float32))
            layer.grid.set_let(s, 0 * s, torch.ones_like(s))
        layer.requires_grad_(False)
        rows = layer.scaled_weight().flatten(1).abs().amax(1)
        layer.set_weight_range(-rows, rows)
    calibration = calibration_of(layers, tiny_model, Bits(8, 8))
    if weights == "none":
        nothing = dict.fromkeys(("weight_low", "weight_high", "weight_codes", "weight_scale"))
        sites: Any = {site: replace(quantizer, **nothing) for site, quantizer in calibration.sites.items()}
        calibration = replace(calibration, sites=sites)
    folded = folded_layers(fold(tiny_model, calibration))
    assert set(folded) == set(layers)
    factors = expected_factors(layers)
    for site, layer in layers.items():
        codes = folded[site].weight_codes
        scale = layer.weight_grid()[0]
        simulated = (layer.quantized_weight() / scale).round().numpy()
        sign = np.sign(factors[site]).reshape(-1, *[1] * (codes.ndim - 1))
        assert np.array_equal(codes, simulated * sign), site


def test_a_scale_that_fp16_cannot_hold_gets_other_codes() -> None:
    """Clipped to fp16's smallest, it stands for weights that are smaller: fewer codes, the same values."""
    codes, scale = np.array([[127, -64], [127, -64]], np.int8), np.array([2.0**-10, 2.0**-10], np.float32)
    got, held = _multiplied(codes, scale, np.array([2.0**-9, -1.0]))
    assert held.tolist() == [2.0**-14, 2.0**-10]
    assert got.tolist() == [[4, -2], [-127, 64]]
