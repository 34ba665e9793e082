"""Few bits in video transformers: rotations, factors, branches and changed weights through folding and graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from video_graphs import first_output, teacher_forced
from video_models import TRANSFORMER, VAE, write_video_model

from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.quantized_layer import QuantizedLayer, with_layers
from intsr.calib.learn.video import transformer_layers
from intsr.calib.methods import methods
from intsr.calib.methods.lsgquant import add_residual_change
from intsr.calib.methods.smoothquant import ALPHA
from intsr.calib.models.families.sd21 import may_shift
from intsr.calib.models.reference import video_reference_networks
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.observe.fake_quant import calibrated_layer
from intsr.calib.observe.video import observe_video
from intsr.export.fold.fold import FoldedNetwork, fake_quantized
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.kernels.layer_algebra import row_range
from intsr.kernels.rotation import rotate
from intsr.types import Bits

# Heads that hold whole blocks of 64, and heads that do not: rotations that fold, and that are a step of their own.
HEADS = {"whole": (2, 64), "halves": (4, 32)}
LATENT_SIZE = (3, 8, 8)
LEARNED = ("quarot", "svdquant", "lsgquant")
W4A4, W8A8 = Bits(4, 4), Bits(8, 8)


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    heads, width = HEADS[request.param]
    config = {**TRANSFORMER, "num_attention_heads": heads, "attention_head_dim": width, "ffn_dim": 192}
    return load_video_model(str(write_video_model(tmp_path_factory.mktemp("wan"), config, VAE)))


@pytest.fixture(scope="module")
def latent() -> torch.Tensor:
    return torch.randn(1, 16, *LATENT_SIZE, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def random_layers(model: VideoModel, method: str, bits: Bits, latent: torch.Tensor) -> dict[str, QuantizedLayer]:
    """As a method's start leaves them, and some of what it trains, without a search."""
    plan, rng = methods()[method], torch.Generator().manual_seed(1)
    layers = transformer_layers(model, bits, **plan.layer_settings)
    reference = video_reference_networks(model)["transformer"]

    def observe(layer: QuantizedLayer, x: torch.Tensor) -> None:
        x = rotate(x, layer.grid.spec.rotation, -1)
        if layer.grid.has_let and not layer.grid.base_scale.ne(1).any():
            s = torch.rand(x.shape[-1], generator=rng) + 0.5
            shift = layer.grid.spec.may_shift * 0.2 * torch.randn(x.shape[-1], generator=rng)
            layer.grid.set_let(s, shift, torch.ones_like(s))
        seen = layer.input_seen(x)
        layer.grid.set_range(0.9 * float(seen.min()), 0.9 * float(seen.max()))

    handles = [
        reference.get_submodule(site).register_forward_pre_hook(lambda _, given, own=layer: observe(own, given[0]))
        for site, layer in layers.items()
    ]
    reference(latent)
    for handle in handles:
        handle.remove()
    for layer in layers.values():
        if layer.branch is not None:
            layer.branch.decompose(layer.layer.weight, layer.grid.scale())
        layer.set_weight_range(*row_range(layer.scaled_weight()))
        if method == "lsgquant":
            add_residual_change(layer, 0)
            change: Any = layer.weight_change
            change.change.normal_(0, 0.3, generator=rng)
        layer.requires_grad_(False)
    return layers


def calibration_of(layers: dict[str, QuantizedLayer], model: VideoModel, method: str, bits: Bits) -> Calibration:
    sites = {site: layer.site_quantizer() for site, layer in layers.items()}
    return Calibration(method, bits, ("transformer",), "tiny-wan", model.digest, 1, 8, 0.0, 0, sites)


def folded(model: VideoModel, calibration: Calibration) -> FoldedNetwork:
    return fold_video_network(specialize_transformer(model.load("transformer"), LATENT_SIZE), calibration)


@pytest.mark.parametrize("bits", [W4A4, W8A8], ids=str)
@pytest.mark.parametrize("method", LEARNED)
def test_graphs_compute_what_was_calibrated(model: VideoModel, latent: torch.Tensor, method: str, bits: Bits) -> None:
    layers = random_layers(model, method, bits, latent)
    network = folded(model, calibration_of(layers, model, method, bits))
    differing, psnr_db = teacher_forced(network, [latent])
    # Every code, but for roundings that fall the other way: at most two, or a thousandth.
    assert not any(differing.values()) and psnr_db >= 100, (psnr_db, differing)
    reference = video_reference_networks(model)["transformer"]
    with torch.no_grad():
        simulated = with_layers(reference, layers)(latent)
        exact = reference(latent)
    error = (first_output(fake_quantized(network), [latent]) - simulated).square().mean()
    # What is left are fp16's scales and branches, and the codes that they move.
    assert error < 0.1 * (simulated - exact).square().mean()


@pytest.mark.parametrize("bits", [W4A4, W8A8], ids=str)
def test_graphs_of_equalized_inputs(model: VideoModel, latent: torch.Tensor, bits: Bits) -> None:
    """SmoothQuant's, whose s goes into norms and into what makes attention's values."""
    clip = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    sites = observe_video(model, [clip, clip.flip(2)], bits, ("transformer",), alpha=ALPHA)
    assert all(quantizer.let_scale is not None for quantizer in sites.values())
    network = folded(model, Calibration("smoothquant", bits, ("transformer",), "", model.digest, 1, 8, 0.0, 0, sites))
    differing, psnr_db = teacher_forced(network, [latent])
    assert not any(differing.values()) and psnr_db >= 100, (psnr_db, differing)


@pytest.mark.parametrize("method", LEARNED)
def test_a_calibrated_layer_is_the_one_that_was_trained(model: VideoModel, latent: torch.Tensor, method: str) -> None:
    layers = random_layers(model, method, W4A4, latent)
    for site, layer in layers.items():
        plain = model.transformer.get_submodule(site.removeprefix("transformer."))
        x = torch.randn(1, 5, plain.in_features, generator=torch.Generator().manual_seed(7))
        got, expected = calibrated_layer(plain, layer.site_quantizer())(x), layer(x)
        assert float((got - expected).abs().max()) < 1e-4 * float(expected.abs().max()), site


def test_rotations_and_factors_cost_nothing_where_attention_is_in_front(
    model: VideoModel, latent: torch.Tensor
) -> None:
    layers = random_layers(model, "lsgquant", W4A4, latent)
    network = folded(model, calibration_of(layers, model, "lsgquant", W4A4))
    whole = model.transformer.config.attention_head_dim == 64
    for site, layer in network.layers.items():
        free = whole and site.endswith("to_out.0")
        assert (layer.rotation, layer.let_scale is None) == (0 if free else 64, free), site
        assert layer.branch is not None and (layer.let_shift is None) is not may_shift(site), site
        assert np.abs(layer.weight_codes).max() <= 15


def test_factors_without_a_rotation_cost_nothing_but_behind_gelu(model: VideoModel, latent: torch.Tensor) -> None:
    layers = random_layers(model, "svdquant", W4A4, latent)
    network = folded(model, calibration_of(layers, model, "svdquant", W4A4))
    for site, layer in network.layers.items():
        assert (layer.let_scale is None) is not site.endswith("ffn.net.2"), site


@pytest.mark.parametrize("method", LEARNED)
def test_eight_bits_have_neither_branch_nor_rotation(model: VideoModel, latent: torch.Tensor, method: str) -> None:
    for site, layer in transformer_layers(model, W8A8, **methods()[method].layer_settings).items():
        assert layer.branch is None and layer.grid.spec.rotation == layer.row_rotation == 0, site
