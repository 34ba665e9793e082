"""Learned weight ranges and codes through folding: what training quantized, times what rows were multiplied by."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from intsr.calib.calibration import Calibration
from intsr.calib.model import SRModel
from intsr.calib.simulate import QuantizedLayer
from intsr.errors import CalibrationError
from intsr.export.fold import FoldedLayer, FoldedModel, fold, layer_modules
from intsr.export.specialize import SpecializedModel, specialize
from intsr.kernels.quantizer import dequantize_weight
from intsr.types import Bits

LEARNED = runpy.run_path(str(Path(__file__).parents[1] / "support" / "learned.py"))
exact_model, random_layers, calibration_of = (
    LEARNED[name] for name in ("exact_model", "random_layers", "calibration_of")
)
POST_QUANT_CONV = "vae.post_quant_conv"
CONV_OUT = "unet.conv_out"


def expected_factors(model: SRModel, layers: dict[str, QuantizedLayer]) -> dict[str, NDArray[np.float64]]:
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
    alpha_bar, f = model.spec.alpha_bar, model.spec.latent_scaling_factor
    for site, factor in ((CONV_OUT, -(((1 - alpha_bar) / alpha_bar) ** 0.5)), ("vae.quant_conv", f)):
        if site in factors:
            factors[site] *= factor
    if POST_QUANT_CONV in factors and not layers[POST_QUANT_CONV].grid.has_let:
        # Its input is f times what it was, which its LET, where it has one, takes back.
        factors[POST_QUANT_CONV] /= f
    return factors


def folded_layers(folded: FoldedModel) -> dict[str, FoldedLayer]:
    return {site: layer for network in folded.networks for site, layer in network.layers.items()}


def expected_weight(layer: QuantizedLayer, factors: NDArray[np.float64]) -> NDArray[np.float64]:
    weight = layer.quantized_weight().numpy()
    return weight * factors.reshape(-1, *[1] * (weight.ndim - 1))


def check_exactly(model: SRModel, layers: dict[str, QuantizedLayer], bits: Bits, sites: set[str]) -> None:
    """Integer weights times their scales, of `sites`, are bit by bit what is expected."""
    folded = folded_layers(fold(specialize(model), calibration_of(layers, model, bits)))
    assert set(folded) == set(layers) and sites <= set(layers)
    factors = expected_factors(model, layers)
    for site in sites:
        expected = expected_weight(layers[site], factors[site])
        if site == "vae.quant_conv":
            expected = expected[: len(expected) // 2]  # the mean's half
        got = dequantize_weight(folded[site].weight_codes, folded[site].weight_scale)
        np.testing.assert_array_equal(got, expected, err_msg=site)


@pytest.fixture
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer runs in integers."""
    monkeypatch.setattr("intsr.calib.sites.MIN_INTEGER_CHANNELS", 1)


@pytest.mark.usefixtures("few_channels")
@pytest.mark.parametrize("weights", ["ranges", "rounding", "low_rank"])
@pytest.mark.parametrize("let", ["none", "channel"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(7, 8), Bits(4, 6)], ids=str)
def test_what_training_held_is_what_engines_hold(tiny_model: SRModel, bits: Bits, let: str, weights: str) -> None:
    model = exact_model(tiny_model)
    layers = random_layers(model, bits, let, weights=weights)
    check_exactly(model, layers, bits, set(layers) - ({POST_QUANT_CONV} if let == "channel" else set()))
    # The factors in question are there.
    factors = expected_factors(model, layers)
    assert set(factors[CONV_OUT]) == {-4} and set(factors["vae.quant_conv"]) == {0.25}
    rows = [site for site in factors if site.endswith((".to_v", "net.0.proj"))]
    assert rows and all((set(factors[site]) == {1}) == (let == "none") for site in rows)


@pytest.mark.usefixtures("few_channels")
@pytest.mark.parametrize("weights", ["ranges", "rounding"])
def test_weights_behind_the_latents_factor_and_a_let(tiny_model: SRModel, weights: str) -> None:
    model, bits = exact_model(tiny_model), Bits(8, 8)
    layers = random_layers(model, bits, "channel", weights=weights)
    check_exactly(model, layers, bits, {POST_QUANT_CONV})


@pytest.mark.usefixtures("few_channels")
@pytest.mark.parametrize("weights", ["ranges", "rounding"])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_a_negative_factor_turns_an_asymmetric_grid_round(tiny_model: SRModel, bits: int, weights: str) -> None:
    """conv_out at few bits: no method asks for it, the arithmetic holds all the same."""
    model = exact_model(tiny_model)
    layers = random_layers(model, Bits(8, 8), "none")
    plain = layers[CONV_OUT]
    layer = QuantizedLayer(CONV_OUT, plain.layer, plain.grid, bits).double().requires_grad_(False)
    scale = torch.tensor([0.5, 1.0, 0.25, 0.5]) * 2.0**-bits
    first = torch.tensor([-0.75, -0.1, -1.0, 0.0]).mul(2**bits - 1).round()
    layer.set_weight_range((first + 0.25) * scale, (first + 0.25 + 2**bits - 1).clamp_min(0) * scale)
    if weights == "rounding":
        layer.rounding = torch.nn.Parameter(torch.randn_like(layer.layer.weight), requires_grad=False)
        layer.hard_rounding = True
    check_exactly(model, {**layers, CONV_OUT: layer}, Bits(8, 8), {CONV_OUT})


@pytest.mark.usefixtures("few_channels")
@pytest.mark.parametrize("weights", ["ranges", "rounding"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 6)], ids=str)
def test_any_factor_costs_a_rounding_of_the_scale(tiny_model: SRModel, bits: Bits, weights: str) -> None:
    """fp16 holds the product of D and a factor less exactly: some codes move by one, none by more."""
    model = replace(exact_model(tiny_model), spec=tiny_model.spec)
    layers = random_layers(model, bits, "channel", weights=weights, exact=False)
    folded = folded_layers(fold(specialize(model), calibration_of(layers, model, bits)))
    factors = expected_factors(model, layers)
    moved = total = 0
    for site in set(layers) - {POST_QUANT_CONV}:
        codes, scale = folded[site].weight_codes.astype(int), folded[site].weight_scale
        rows = factors[site][: len(scale)]
        low, high = (end.reshape(layers[site].channel_shape) for end in layers[site].weight_ends())
        trained_scale = layers[site].weight_grid(low, high)[0]
        trained = (layers[site].quantized_weight() / trained_scale).round().numpy()[: len(scale)]
        np.testing.assert_allclose(scale, trained_scale.flatten().numpy()[: len(scale)] * np.abs(rows), rtol=2e-3)
        difference = np.abs(codes - trained * np.sign(rows).reshape(layers[site].channel_shape))
        assert difference.max() <= (1 if weights == "ranges" else 0), site
        moved, total = moved + int(difference.sum()), total + difference.size
    assert moved < 0.03 * total


def broken(quantizer: Any, **arrays: NDArray[Any] | None) -> Any:
    nothing = dict.fromkeys(("weight_low", "weight_high", "weight_codes", "weight_scale"))
    return replace(quantizer, **{**nothing, **arrays})


def test_nothing_happens_to_layers_that_stay_float(
    tiny_specialized: SpecializedModel, tiny_calibration: Calibration
) -> None:
    """Whatever a calibration says of them."""
    sites = dict(tiny_calibration.sites)
    floats = ["unet.conv_in", CONV_OUT, "vae.quant_conv", POST_QUANT_CONV, "vae.encoder.conv_in"]
    for i, site in enumerate(floats):
        arrays: dict[str, NDArray[Any]] = {
            "weight_low": np.full(5, -1, np.float32),
            "weight_high": np.ones(5, np.float32),
        }
        if i % 2:
            arrays = {"weight_codes": np.ones((5, 2), np.int8), "weight_scale": np.ones(5, np.float32)}
        let = {"let_scale": np.full(4, 3, np.float32), "let_shift": np.ones(4, np.float32)}
        sites[site] = broken(sites[site], **arrays, **let)
    folded = fold(tiny_specialized, replace(tiny_calibration, sites=sites))
    assert not set(floats) & set(folded_layers(folded))
    seen = set()
    for name, module in tiny_specialized.networks().items():
        before, after = layer_modules(module), layer_modules(folded.network(name).module)
        for site in set(floats) & set(before):
            seen.add(site)
            assert torch.equal(before[site].weight, after[site].weight), site
            assert torch.equal(before[site].bias, after[site].bias), site
    assert seen == set(floats)


SITE = "vae.decoder.mid_block.resnets.0.conv1"  # 32 to 32 channels, 3x3


@pytest.mark.parametrize(
    "arrays",
    [
        {"weight_low": np.zeros(31, np.float32), "weight_high": np.ones(31, np.float32)},
        {"weight_low": np.zeros(64, np.float32), "weight_high": np.ones(64, np.float32)},
        {"weight_codes": np.zeros((64, 32, 3, 3), np.int8), "weight_scale": np.ones(64, np.float32)},
        {"weight_codes": np.zeros((32, 32, 3, 1), np.int8), "weight_scale": np.ones(32, np.float32)},
        {"weight_codes": np.zeros((32, 9, 3, 3), np.int8), "weight_scale": np.ones(32, np.float32)},
    ],
)
def test_weights_of_another_shape(
    tiny_specialized: SpecializedModel, tiny_calibration: Calibration, arrays: dict[str, NDArray[Any]]
) -> None:
    sites = {**tiny_calibration.sites, SITE: broken(tiny_calibration.sites[SITE], **arrays)}
    with pytest.raises(CalibrationError, match=rf"{SITE}: learned weights of shape"):
        fold(tiny_specialized, replace(tiny_calibration, sites=sites))


@pytest.mark.usefixtures("few_channels")
def test_half_of_quant_conv_s_weights_are_not_all(tiny_model: SRModel, tiny_calibration: Calibration) -> None:
    """A calibration knows the layer whole; 4 rows would be taken for the mean's by mistake."""
    arrays = {"weight_low": np.zeros(4, np.float32), "weight_high": np.ones(4, np.float32)}
    site = "vae.quant_conv"
    sites = {**tiny_calibration.sites, site: broken(tiny_calibration.sites[site], **arrays)}
    with pytest.raises(CalibrationError, match="learned weights of shape"):
        fold(specialize(tiny_model), replace(tiny_calibration, sites=sites))
