from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folding import fold
from hypothesis import given
from hypothesis import strategies as st

from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.methods.maxmin_let import observe_let
from intsr.calib.models.families.sd21 import input_groups
from intsr.calib.models.open import SRModel
from intsr.calib.observe.let_scales import let_scale_from_maxima
from intsr.errors import CalibrationError
from intsr.kernels.quantizer import QuantParams, dequantize_weight, fake_quantize_torch, quantize_weight
from intsr.types import Bits

PARTS = ("unet", "vae")


def inputs() -> list[torch.Tensor]:
    return [torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2)]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), min_size=1, max_size=9), st.floats(0, 1))
def test_scales_are_positive_and_finite(channels: list[tuple[float, float]], alpha: float) -> None:
    reach, weight = (torch.tensor(column, dtype=torch.float32) for column in zip(*channels, strict=True))
    s = let_scale_from_maxima(reach, weight, alpha)
    assert torch.isfinite(s).all() and (s > 0).all()
    assert (s[(reach == 0) | (weight == 0)] == 1).all()


def test_the_formula() -> None:
    # a = 1: s = (8, 2) / (1, 1), over their geometric mean 4.
    s = let_scale_from_maxima(torch.tensor([8.0, 2.0]), torch.tensor([1.0, 1.0]), 1.0)
    torch.testing.assert_close(s, torch.tensor([2.0, 0.5]))


def test_groups_share_one_let(tiny_model: SRModel) -> None:
    sites = observe_let(tiny_model, inputs(), Bits(8, 8), PARTS)
    groups = [group for group in input_groups(sites) if len(group) > 1]
    # Two levels and the middle of the UNet: 1 down, 1 mid, 2 up; and the VAE's two.
    assert len(groups) == 6 and all(len(group) == 3 for group in groups)
    for group in groups:
        assert len({(sites[s].let_scale.tobytes(), sites[s].x_min, sites[s].x_max) for s in group}) == 1
    assert sorted(site for group in input_groups(sites) for site in group) == sorted(sites)


def test_it_helps_where_channels_differ() -> None:
    """One linear whose input channels span two decades: error of the product with and without s."""
    bits = 6
    generator = torch.Generator().manual_seed(5)
    spread = torch.logspace(-1, 1, 32)
    x = torch.randn(500, 32, generator=generator) * spread
    weight = torch.randn(24, 32, generator=generator)
    errors = []
    for alpha in (0.0, 0.5):
        s = let_scale_from_maxima(x.abs().amax(0), weight.abs().amax(0), alpha)
        codes, scale = quantize_weight((weight * s).numpy(), bits)
        scaled = x / s
        params = QuantParams.from_range(float(scaled.min()), float(scaled.max()), bits)
        product = fake_quantize_torch(scaled, params) @ torch.from_numpy(dequantize_weight(codes, scale)).T
        errors.append(float((product - x @ weight.T).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_round_trip_and_broken_scales(tiny_model: SRModel, tmp_path: Path) -> None:
    sites = observe_let(tiny_model, inputs(), Bits(8, 8), ("vae",))
    calibration = Calibration("maxmin+let", Bits(8, 8), ("vae",), "tiny", tiny_model.digest, 2, 8, 0.0, 0, sites)
    save_calibration(calibration, tmp_path / "c")
    assert load_calibration(tmp_path / "c") == calibration
    site = "vae.decoder.conv_in"
    other = replace(sites[site], let_scale=np.ones_like(sites[site].let_scale))
    assert replace(calibration, sites=dict(sites) | {site: other}).digest() != calibration.digest()
    with pytest.raises(ValueError, match="one length"):
        replace(sites[site], let_shift=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="positive"):
        replace(sites[site], let_scale=np.zeros_like(sites[site].let_scale))


def test_scales_of_another_width(tiny_model: SRModel, tiny_calibration: Calibration) -> None:
    site = "vae.decoder.mid_block.resnets.0.conv1"
    let = {"let_scale": np.ones(2, np.float32), "let_shift": np.zeros(2, np.float32)}
    broken = replace(tiny_calibration.sites[site], **let)
    with pytest.raises(CalibrationError, match="LET of 2 channels"):
        fold(tiny_model, replace(tiny_calibration, sites=dict(tiny_calibration.sites) | {site: broken}))
