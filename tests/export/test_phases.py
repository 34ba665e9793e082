"""Upsamplers in four phases: exact, lowered on one grid, and whole where a calibration says so."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from folding import fold
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from intsr.calib.calibrate import Recipe, calibrate
from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.models import phases
from intsr.calib.models.open import SRModel
from intsr.calib.models.phases import PhaseUpsample2D, in_phases, join_phases, wide_upsamplers
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import sites_of_model
from intsr.export.fold.fold import FoldedLayer, FoldedNetwork, fake_quantized
from intsr.export.lower.network import lower_network
from intsr.kernels.quantizer import QuantParams, quantize_weight
from intsr.targets.lowering import LOWERINGS
from intsr.types import Bits

UPSAMPLERS = ("unet.up_blocks.0.upsamplers.0.conv", "vae.decoder.up_blocks.0.upsamplers.0.conv")


def upsampler(inputs: int, outputs: int, seed: int, bias: bool = True) -> Upsample2D:
    torch.manual_seed(seed)
    return Upsample2D(inputs, use_conv=True, out_channels=outputs, bias=bias).requires_grad_(False)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_every_pixel_is_diffusers_own(height: int, width: int, channels: int, bias: bool, seed: int) -> None:
    whole = upsampler(channels, 3, seed, bias).double()
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(PhaseUpsample2D(whole.conv)(x), whole(x), rtol=1e-12, atol=1e-12)


def test_networks_are_the_same(tiny_model: SRModel) -> None:
    parts = {part: copy.deepcopy(getattr(tiny_model, part)).double() for part in ("unet", "vae")}
    model = replace(tiny_model, **parts, context=tiny_model.context.double())
    exact = joined = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    changed = in_phases(model, UPSAMPLERS)
    for name, network in reference_networks(model).items():
        with torch.no_grad():
            exact, joined = network(exact), reference_networks(changed)[name](joined)
        assert float((exact - joined).abs().max()) < 1e-10 * float(exact.abs().max()), name
    for site in UPSAMPLERS:
        before, after = (sites_of_model(m, ("unet", "vae"))[site].weight for m in (model, changed))
        assert after.shape == (4 * before.shape[0], before.shape[1], 2, 2)
    # Nothing is left to change, and the model itself is as it was.
    assert in_phases(changed, UPSAMPLERS).vae is changed.vae
    assert isinstance(model.vae.decoder.up_blocks[0].upsamplers[0], Upsample2D)


def test_only_wide_ones_are_worth_it(tiny_model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wide_upsamplers(tiny_model) == () and in_phases(tiny_model).unet is tiny_model.unet
    monkeypatch.setattr(phases, "MIN_CHANNELS", 40)
    # 48 channels of the UNet, 32 of the VAE.
    assert wide_upsamplers(tiny_model) == UPSAMPLERS[:1]
    changed = in_phases(tiny_model)
    assert changed.unet is not tiny_model.unet and changed.vae is tiny_model.vae
    # A part that is not there stays away.
    assert in_phases(replace(tiny_model, unet=None), UPSAMPLERS).unet is None  # type: ignore[arg-type]


def test_calibrations_know_what_they_were_made_of(
    tiny_model: SRModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "MIN_CHANNELS", 40)
    pictures = [tmp_path / f"{name}.png" for name in "ab"]
    for seed, path in enumerate(pictures):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    recipe = Recipe("lbq", Bits(4, 8), tile_px=16, crop_px=16, crops=4, training=TrainingOptions(1, 1, batch=1))
    made = calibrate(tiny_model, pictures, recipe)
    assert made.phases == UPSAMPLERS[:1]
    learned = [len(made.sites[site].weight_low) for site in UPSAMPLERS]  # type: ignore[arg-type]
    # Each phase has ranges of its own. Whatever is wide enough by then, it is folded as it was calibrated.
    monkeypatch.setattr(phases, "MIN_CHANNELS", 1000)
    folded = fold(tiny_model, made)
    layers = folded["unet"].layers | folded["decoder"].layers
    assert [len(layers[site].weight_codes) for site in UPSAMPLERS] == learned == [4 * 48, 32]


def test_gradients_go_back_to_where_pixels_came_from() -> None:
    y = torch.randn(2, 8, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(join_phases, (y,))


def test_only_doubling_has_phases() -> None:
    module = PhaseUpsample2D(upsampler(2, 2, 0).conv)
    with pytest.raises(ValueError, match="expected twice the input"):
        module(torch.zeros(1, 2, 3, 3), (5, 5))


@pytest.mark.parametrize("name", ["asymmetric-cpu", "symmetric-f32", "symmetric-rtx-f32", "weight-only-f32"])
@pytest.mark.parametrize("let", ["none", "scale", "shift"])
def test_phases_share_one_grid(name: str, let: str) -> None:
    module = nn.Sequential(PhaseUpsample2D(upsampler(16, 3, 4).conv)).eval()
    codes = quantize_weight(module[0].conv.weight.numpy(), 8)
    # With a shift the grid may lack a code for 0: padding is of x.
    params, rng = QuantParams(0.03125, 300 if let == "shift" else 20, 8), np.random.default_rng(1)
    s, d = (rng.uniform(*ends, 16).astype(np.float32) for ends in ((0.5, 2), (-1, 1)))
    layer = FoldedLayer(
        "0.conv", *codes, params, None if let == "none" else s, d if let == "shift" else None
    )  # fmt: skip
    network, lowering = FoldedNetwork("decoder", module, {"0.conv": layer}), LOWERINGS[name]
    x = rng.uniform(params.real_min, params.real_max, (1, 16, 5, 7)).astype(np.float32)
    model, info_in, _ = lower_network(network, lowering, x.shape)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {info_in.name: x})
    expected = fake_quantized(network, lowering.activation == "float")(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["Conv"], kinds["DepthToSpace"], kinds["Resize"]) == (4, 1, 0)
    assert kinds["QuantizeLinear"] == (lowering.activation != "float") and kinds["Pad"] <= 1


def test_a_calibration_of_whole_upsamplers_is_folded_whole(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    whole = replace(tiny_calibration, phases=())
    assert whole.digest() != tiny_calibration.digest()
    for calibration in (whole, tiny_calibration):
        save_calibration(calibration, tmp_path / "c")
        known = load_calibration(tmp_path / "c")
        assert known.phases == calibration.phases and known.digest() == calibration.digest()
        folded = fold(tiny_model, known)
        layers = folded["unet"].layers | folded["decoder"].layers
        assert {layers[site].weight_codes.shape[2] for site in UPSAMPLERS} == {2 if known.phases else 3}
    model, *_ = lower_network(fold(tiny_model, whole)["decoder"], LOWERINGS["asymmetric-cpu"], (1, 4, 8, 8))
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Resize"] == 1 and kinds["DepthToSpace"] == 0
