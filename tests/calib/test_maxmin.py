from __future__ import annotations

import pytest
import torch

from intsr.calib.methods.maxmin import observe_maxmin
from intsr.calib.models.families.sd21 import reads_bare_stream
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import sites_of_model
from intsr.errors import CalibrationError
from intsr.types import Bits


def inputs(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(count)]


def test_ranges_are_the_mean_over_pictures_of_what_each_reaches(tiny_model: SRModel) -> None:
    """Checked against the inputs of the UNet and the encoder themselves, kept here in full."""
    batches = inputs(3)
    pictures = [torch.cat(batches[:2]), batches[2]]
    sites = observe_maxmin(tiny_model, pictures, Bits(8, 8), ("unet", "vae"))
    with torch.no_grad():
        latents = [reference_networks(tiny_model)["encoder"](x) for x in pictures]
    for site, tensors in (("unet.conv_in", latents), ("vae.encoder.conv_in", pictures)):
        assert sites[site].x_min == pytest.approx(sum(float(x.min()) for x in tensors) / 2, rel=1e-4)
        assert sites[site].x_max == pytest.approx(sum(float(x.max()) for x in tensors) / 2, rel=1e-4)


def test_a_guard_counts_whole_on_bare_streams_and_by_its_mean_elsewhere(tiny_model: SRModel) -> None:
    parts, black, white = ("unet", "vae"), -torch.ones(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    of = {
        "pictures": observe_maxmin(tiny_model, inputs(2), Bits(8, 8), parts),
        "black": observe_maxmin(tiny_model, [black], Bits(8, 8), parts),
        "white": observe_maxmin(tiny_model, [white], Bits(8, 8), parts),
    }
    guarded = observe_maxmin(tiny_model, inputs(2), Bits(8, 8), parts, [black, white])
    bare = [site for site in guarded if reads_bare_stream(site)]
    assert 0 < len(bare) < len(guarded)
    for site, q in guarded.items():
        highs = {name: sites[site].x_max for name, sites in of.items()}
        guard = max(highs["black"], highs["white"]) if site in bare else (highs["black"] + highs["white"]) / 2
        assert q.x_max == pytest.approx(max(highs["pictures"], guard), rel=1e-4), site
    assert any(guarded[site].x_max > of["pictures"][site].x_max for site in bare)


def test_every_layer_of_the_parts_has_a_range_that_holds_zero(tiny_model: SRModel) -> None:
    sites = observe_maxmin(tiny_model, inputs(1), Bits(6, 4), ("unet",))
    assert set(sites) == set(sites_of_model(tiny_model, ("unet",)))
    assert all(site.x_min <= 0 <= site.x_max for site in sites.values())
    assert {(q.weight_bits, q.activation_bits) for q in sites.values()} == {(6, 4)}


def test_nan_names_the_layer(tiny_model: SRModel) -> None:
    broken = torch.full((1, 3, 32, 32), float("nan"))
    with pytest.raises(CalibrationError, match=r"vae\.encoder\.conv_in"):
        observe_maxmin(tiny_model, [broken], Bits(8, 8), ("unet", "vae"))
    # The hooks are gone after a failure too.
    assert not any(module._forward_pre_hooks for module in sites_of_model(tiny_model, ("unet", "vae")).values())
