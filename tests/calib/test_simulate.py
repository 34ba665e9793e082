"""Simulated layers: LET changes nothing by itself (float64, 1e-10), and sits where it may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from intsr.calib.learn.input_grid import GridSpec, InputGrid
from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers, with_layers
from intsr.calib.methods.efficientdm import LowRankChange
from intsr.calib.models.families.sd21 import concat_boundaries
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import integer_sites
from intsr.kernels.quantizer import fake_quantize_torch
from intsr.types import Bits

twos = st.tuples(st.integers(1, 2), st.integers(1, 2))
exponents = st.lists(st.floats(-4, 4), min_size=2, max_size=5)
seeds = st.integers(0, 2**20)


def let_layer(
    layer: nn.Conv2d | nn.Linear, exponents: list[float], shift: bool, seam: int, seed: int
) -> QuantizedLayer:
    """s = 10**exponents, or one value each side of `seam` channels; d where `shift`."""
    channels = len(exponents)
    segments = tuple(int(c >= seam) for c in range(channels)) if seam else tuple(range(channels))
    spec = GridSpec(channels, 1 if isinstance(layer, nn.Conv2d) else -1, 8, False, False, shift, segments)
    result = QuantizedLayer("site", layer, InputGrid(spec), 8).double()
    s = 10 ** torch.tensor(exponents, dtype=torch.float64)[: max(segments) + 1]
    d = torch.randn(len(s), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5 * shift
    result.grid.set_let(s[list(segments)], d[list(segments)], torch.ones(channels))
    return result.requires_grad_(False)


@given(
    st.fixed_dictionaries(
        {
            "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "stride": twos,
            "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
            "dilation": twos,
            "bias": st.booleans(),
        }
    ),
    *(exponents, st.booleans(), seeds),
)
@settings(max_examples=80, deadline=None)
def test_let_leaves_a_convolution_as_it_is(
    geometry: dict[str, Any], exponents: list[float], shift: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    channels, rng = len(exponents), np.random.default_rng(seed)
    conv = nn.Conv2d(channels, 3, **geometry).double().requires_grad_(False)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    dead = int(rng.integers(0, channels))
    x[:, dead], conv.weight[:, dead] = 0, 0
    layer = let_layer(conv, exponents, shift, int(rng.integers(0, channels)), seed)
    y = layer.apply_layer(layer.input_seen(x), layer.scaled_weight())
    torch.testing.assert_close(y, conv(x), rtol=0, atol=1e-10)


@given(exponents, st.booleans(), st.booleans(), seeds)
@settings(max_examples=40, deadline=None)
def test_let_leaves_a_linear_layer_as_it_is(exponents: list[float], shift: bool, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(len(exponents), 3, bias=bias).double().requires_grad_(False)
    layer = let_layer(linear, exponents, shift, 0, seed)
    x = torch.randn(2, 4, len(exponents), dtype=torch.float64)
    y = layer.apply_layer(layer.input_seen(x), layer.scaled_weight())
    torch.testing.assert_close(y, linear(x), rtol=0, atol=1e-10)


def test_each_part_of_the_transformation_is_its_formula() -> None:
    """x~ = (pad(x) - d) / s, W~ = s W, b~ = b + W d: written out for one convolution."""
    conv = nn.Conv2d(2, 1, 1, padding=(1, 0)).double().requires_grad_(False)
    conv.weight.copy_(torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1))
    conv.bias.copy_(torch.tensor([7.0]))
    layer = let_layer(conv, [0.0, 1.0], True, 0, 0)
    s, d = torch.tensor([1.0, 10.0]).double(), torch.tensor([0.5, -2.0]).double()
    layer.grid.set_let(s, d, torch.ones(2))
    x = torch.tensor([[[[4.0]], [[6.0]]]]).double()
    expected = torch.tensor([[-0.5, 3.5, -0.5], [0.2, 0.8, 0.2]]).double().reshape(1, 2, 3, 1)
    torch.testing.assert_close(layer.input_seen(x), expected)
    assert layer.scaled_weight().flatten().tolist() == [3.0, 50.0]
    bias = layer.bias()
    assert bias is not None and bias.tolist() == [7 + 1.5 - 10]


def test_every_integer_layer_and_what_its_grid_may_do(tiny_model: SRModel) -> None:
    parts = ("unet", "vae")
    layers = quantized_layers(tiny_model, Bits(4, 6), parts, let="channel")
    assert list(layers) == list(integer_sites(tiny_model, parts))
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    q, k, v = (layers[f"{block}.attn1.to_{end}"].grid for end in "qkv")
    assert q is k and k is v and q is not layers[f"{block}.attn2.to_q"].grid
    for site, layer in layers.items():
        spec = layer.grid.spec
        on_stream = site.startswith("vae.") and site.endswith(("conv_shortcut", "samplers.0.conv", "proj_out"))
        assert (layer.weight_bits, spec.bits) == (4, 8 if on_stream else 6), site
        convolution = isinstance(layer.layer, nn.Conv2d)
        assert spec.axis == (1 if convolution else -1) and spec.segments == tuple(range(spec.channels))
        behind = site.endswith(("conv1", "conv2", "to_out.0", "ff.net.2"))
        assert spec.may_shift != behind, site
        # Zeros are padded to x where d shifts it; elsewhere the grid has a code for them.
        assert spec.holds_zero == (behind and convolution), site
    symmetric = quantized_layers(tiny_model, Bits(8, 8), parts, let="channel", symmetric=True)
    assert not any(layer.grid.spec.may_shift for layer in symmetric.values())


def test_parts_meet_where_skips_are_joined(tiny_model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam, against what the UNet really concatenates."""
    joined: list[tuple[int, int]] = []
    join = torch.cat

    def record(tensors: Any, dim: int = 0, **options: Any) -> torch.Tensor:
        if dim == 1 and len(tensors) == 2 and all(t.ndim == 4 for t in tensors):
            joined.append((tensors[0].shape[1], tensors[1].shape[1]))
        return join(tensors, dim=dim, **options)

    monkeypatch.setattr(torch, "cat", record)
    with torch.no_grad():
        reference_networks(tiny_model)["unet"](torch.zeros(1, 4, 16, 16))
    seams = concat_boundaries(tiny_model.unet)
    firsts = [site for site in seams if site.endswith("conv1")]
    assert [seams[site] for site in firsts] == [front for front, _ in joined] and len(joined) == 4
    layers = quantized_layers(tiny_model, Bits(8, 8), ("unet",), let="part")
    for site, layer in layers.items():
        if site not in seams:
            assert layer.grid.spec.segments is None, site
            continue
        front, back = joined[firsts.index(site.replace("conv_shortcut", "conv1"))]
        assert layer.grid.spec.segments == (0,) * front + (1,) * back
        assert layer.grid.spec.may_shift == site.endswith("conv_shortcut")


def test_layers_take_their_places_in_a_copy(tiny_model: SRModel) -> None:
    reference = reference_networks(tiny_model)["decoder"]
    site = "vae.decoder.mid_block.resnets.0.conv1"
    layer = quantized_layers(tiny_model, Bits(8, 8), ("vae",))[site]
    assert not layer.grid.has_let
    network = with_layers(reference, {site: layer})
    assert network.get_submodule(site) is layer
    assert isinstance(reference.get_submodule(site), nn.Conv2d)
    other = "vae.decoder.conv_in.weight"
    assert network.get_parameter(other) is reference.get_parameter(other)


def test_a_layer_s_forward_is_its_parts() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 2, 3, 2, padding=(2, 1)).requires_grad_(False)
    layer = let_layer(conv.double(), [0.1, -0.2, 0.3], True, 0, 0)
    layer.grid.set_range(-3, 4)
    reach = conv.weight.flatten(1).abs().amax(1)
    layer.set_weight_range(-reach, reach)
    x = torch.randn(1, 3, 8, 9, dtype=torch.float64)
    s, d = (value.reshape(1, -1, 1, 1) for value in (layer.grid.scale(), layer.grid.offset()))
    seen = (functional.pad(x, (1, 1, 2, 2)) - d) / s
    params = layer.site_quantizer().activation_params()
    bias = conv.bias + (conv.weight * d).flatten(1).sum(1)
    expected = functional.conv2d(fake_quantize_torch(seen, params), layer.quantized_weight(), bias, 2)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("let", ["none", "part", "channel"])
def test_in_mixed_precision_ranges_get_the_same_gradients(tiny_model: SRModel, let: str) -> None:
    """Only rounded as bfloat16 rounds what the layers compute; quantizers themselves are float32 (`--mixed`)."""
    x = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients = []
    for mixed in (False, True):
        layers = quantized_layers(tiny_model, Bits(8, 8), ("unet",), let=let)
        for layer in layers.values():
            layer.grid.set_range(-4.0, 4.0)
            rows = layer.scaled_weight().flatten(1).detach()
            layer.set_weight_range(rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0))
        network = with_layers(reference_networks(tiny_model)["unet"], layers)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = network(x)
        output.float().square().mean().backward()
        grids = {id(layer.grid): layer.grid for layer in layers.values()}.values()
        gradients.append(torch.stack([p.grad for grid in grids for p in (grid.low, grid.high)]))
    whole, of_mixed = gradients
    assert float((of_mixed - whole).norm() / whole.norm()) < 0.3


def test_learned_weights_are_in_full_precision(tiny_model: SRModel) -> None:
    """The product that EfficientDM adds, which is what is exported, under autocast too."""
    layer = next(iter(quantized_layers(tiny_model, Bits(8, 8), ("unet",), let="none").values()))
    rows, columns = layer.layer.weight.flatten(1).shape
    layer.weight_change = LowRankChange(torch.randn(rows, 4), torch.randn(4, columns))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer.scaled_weight()
    assert torch.equal(mixed, layer.scaled_weight())
