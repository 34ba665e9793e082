"""What folding takes, leaves and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from folding import Folded, Modules, fold

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.models.families.sd21 import FLOAT_SITES
from intsr.calib.models.modules import layers_of
from intsr.calib.models.open import SRModel
from intsr.calib.models.sites import integer_sites
from intsr.errors import CalibrationError
from intsr.export.fold.specialize import specialize
from intsr.types import NETWORKS

SITE = "vae.decoder.mid_block.resnets.0.conv1"  # 32 to 32 channels, 3x3


def with_arrays(calibration: Calibration, site: str, **arrays: Any) -> Calibration:
    """One site with other numbers."""
    return replace(calibration, sites={**calibration.sites, site: replace(calibration.sites[site], **arrays)})


def integer_layers(folded: Folded) -> set[str]:
    return {site for network in folded.values() for site in network.layers}


@pytest.mark.parametrize("name", ["tiny_model", "demo_model"])
def test_what_is_trained_is_what_engines_run_in_integers(name: str, request: pytest.FixtureRequest) -> None:
    model: SRModel = request.getfixturevalue(name)
    layers = {site: layer for part in NETWORKS for site, layer in layers_of(specialize(part, model).module).items()}
    assert set(layers) - FLOAT_SITES == set(integer_sites(model, ("unet", "vae")))
    assert set(layers) > FLOAT_SITES


def test_only_the_parts_asked_for(tiny_model: SRModel, tiny_calibration: Calibration) -> None:
    folded = fold(tiny_model, replace(tiny_calibration, parts=("unet",)))
    assert {name for name in NETWORKS if folded[name].layers} == {"unet"}
    assert not integer_layers(fold(tiny_model, None))


def test_nothing_happens_to_layers_that_stay_float(
    tiny_model: SRModel, tiny_specialized: Modules, tiny_calibration: Calibration
) -> None:
    """Whatever a calibration says of them."""
    floats = ["unet.conv_in", "unet.conv_out", "vae.quant_conv", "vae.post_quant_conv", "vae.encoder.conv_in"]
    calibration = tiny_calibration
    for i, site in enumerate(floats):
        arrays: dict[str, Any] = {"weight_low": np.full(5, -1, np.float32), "weight_high": np.ones(5, np.float32)}
        if i % 2:
            arrays = {"weight_codes": np.ones((5, 2), np.int8), "weight_scale": np.ones(5, np.float32)}
        let = {"let_scale": np.full(4, 3, np.float32), "let_shift": np.ones(4, np.float32)}
        calibration = with_arrays(calibration, site, **arrays, **let)
    folded = fold(tiny_model, calibration)
    assert not set(floats) & integer_layers(folded)
    seen = set()
    for name, module in tiny_specialized.items():
        before, after = layers_of(module), layers_of(folded[name].module)
        for site in set(floats) & set(before):
            seen.add(site)
            assert torch.equal(before[site].weight, after[site].weight), site
            assert torch.equal(before[site].bias, after[site].bias), site
    assert seen == set(floats)


def ranges(rows: int) -> dict[str, Any]:
    return {"weight_low": np.zeros(rows, np.float32), "weight_high": np.ones(rows, np.float32)}


def codes(*shape: int) -> dict[str, Any]:
    return {"weight_codes": np.zeros(shape, np.int8), "weight_scale": np.ones(shape[0], np.float32)}


@pytest.mark.parametrize(
    ("site", "arrays"),
    [(SITE, ranges(31)), (SITE, ranges(64)), (SITE, codes(32, 32, 3, 1))],
)
def test_weights_of_another_shape(
    tiny_model: SRModel, tiny_calibration: Calibration, site: str, arrays: dict[str, Any]
) -> None:
    with pytest.raises(CalibrationError, match=rf"{site}: learned weights of shape"):
        fold(tiny_model, with_arrays(tiny_calibration, site, **arrays))


def test_a_missing_layer_and_a_let_of_another_width(tiny_model: SRModel, tiny_calibration: Calibration) -> None:
    sites: dict[str, SiteQuantizer] = dict(tiny_calibration.sites)
    del sites[SITE]
    with pytest.raises(CalibrationError, match=rf"no range for {SITE}"):
        fold(tiny_model, replace(tiny_calibration, sites=sites))
    let = {"let_scale": np.ones(31, np.float32), "let_shift": np.zeros(31, np.float32)}
    with pytest.raises(CalibrationError, match=rf"LET of 31 channels for {SITE}; expected 32"):
        fold(tiny_model, with_arrays(tiny_calibration, SITE, **let))
