"""What is folded computes what was trained: the simulated network and the folded one agree to the last digits.

In float64 no value falls on the other side of a rounding, so that both networks hold the same codes everywhere; the
smallest mistake of the algebra would spread to the whole output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from folding import Folded, fold
from learned import calibration_of, exact_model, network_input, random_layers
from torch import nn

from intsr.calib.learn.quantized_layer import QuantizedLayer, with_layers
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.calib.observe.fake_quant import FakeQuantLayer
from intsr.export.fold.fold import fake_quantized
from intsr.kernels.rotation import rotate
from intsr.types import NETWORKS, Bits


@pytest.fixture(autouse=True)
def _branches_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not rounded to what engines hold: the algebra is in question."""
    monkeypatch.setattr("intsr.export.fold.fold.stored", lambda part: part)


def run_observed(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and the quantized input of every layer."""
    seen: dict[str, torch.Tensor] = {}

    def observe(layer: Any, inputs: tuple[torch.Tensor], name: str) -> None:
        if isinstance(layer, QuantizedLayer):
            x = rotate(inputs[0], layer.grid.spec.rotation, layer.grid.spec.axis)
            seen[name] = layer.grid.quantize(layer.input_seen(x))
        else:
            seen[name] = layer.quantized(layer.transformed(inputs[0]))

    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLayer | FakeQuantLayer):
            layer.register_forward_pre_hook(partial(observe, name=name))
    with torch.no_grad():
        return module(x), seen


def compare(name: str, model: SRModel, layers: dict[str, QuantizedLayer], folded: Folded) -> None:
    """One network: the same values in front of every layer, and the same output."""
    network, x = reference_networks(model)[name], network_input(name)
    own = {site: layer for site, layer in layers.items() if network_of_site(site) == name}
    expected, expected_inputs = run_observed(with_layers(network, own), x)
    got, got_inputs = run_observed(fake_quantized(folded[name]).double(), x)
    assert set(expected_inputs) == set(got_inputs) == set(own)
    for site, values in expected_inputs.items():
        torch.testing.assert_close(got_inputs[site], values, rtol=0, atol=1e-10, msg=site)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    with torch.no_grad():
        exact = network(x)
    ratio_db = float(10 * torch.log10(exact.var() / (expected - exact).var()))
    # Something was quantized, and not to noise.
    assert 3 < ratio_db < 60, f"{ratio_db:.1f} dB to full precision"


def check(model: SRModel, layers: dict[str, QuantizedLayer], bits: Bits, *names: str) -> None:
    folded = fold(model, calibration_of(layers, model, bits))
    for name in names:
        compare(name, model, layers, folded)


CASES = [
    *((let, symmetric, "ranges") for let in ("channel", "none") for symmetric in (False, True)),
    *(("part", False, weights) for weights in ("ranges", "low_rank")),
    *(("channel", False, weights) for weights in ("rounding", "low_rank", "branch")),
    ("none", True, "branch"),
    *(("none", symmetric, "rotated") for symmetric in (False, True)),
]


@pytest.mark.parametrize(("let", "symmetric", "weights"), CASES)
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(5, 6)], ids=str)
def test_folded_equals_simulated(tiny_model: SRModel, bits: Bits, let: str, symmetric: bool, weights: str) -> None:
    model = exact_model(tiny_model)
    check(model, random_layers(model, bits, let, symmetric=symmetric, weights=weights), bits, *NETWORKS)


def test_a_padded_range_without_zero_and_a_shift_of_zeros(tiny_model: SRModel) -> None:
    """Training pads before a grid that may shift, and clips the zeros to the range's low end, d = 0 or not."""
    model, bits = exact_model(tiny_model), Bits(8, 8)
    layers = random_layers(model, bits, "channel")
    grid = layers["unet.down_blocks.0.downsamplers.0.conv"].grid
    grid.base_shift.zero_()
    grid.set_range(0.25, 0.25 + 255 / 64)
    check(model, layers, bits, "unet")
