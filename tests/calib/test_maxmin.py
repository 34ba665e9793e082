from __future__ import annotations

import pytest
import torch

from intsr.calib.maxmin import observe_maxmin
from intsr.calib.model import SRModel
from intsr.calib.reference import reference_networks
from intsr.calib.sites import EIGHT_BIT_SITES, reads_bare_stream, sites_of_model
from intsr.errors import CalibrationError
from intsr.types import Bits


def inputs(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(count)]


def test_ranges_are_the_mean_over_tiles_of_what_channels_reach(tiny_model: SRModel) -> None:
    """Checked against the inputs of the UNet and the encoder themselves, kept here in full."""
    batches = inputs(3)
    sites = observe_maxmin(tiny_model, [torch.cat(batches[:2]), batches[2]], Bits(8, 8), ("unet", "vae"))
    with torch.no_grad():
        latents = torch.cat([reference_networks(tiny_model)["encoder"](x) for x in batches])
    for site, tensor in (("unet.conv_in", latents), ("vae.encoder.conv_in", torch.cat(batches))):
        columns = tensor.flatten(2)
        assert sites[site].x_min == pytest.approx(float(columns.amin(2).mean(0).min()), rel=1e-4)
        assert sites[site].x_max == pytest.approx(float(columns.amax(2).mean(0).max()), rel=1e-4)
        # One tile's extreme does not decide.
        assert sites[site].x_max < float(tensor.max())


def test_a_guard_widens_bare_streams_and_nothing_else(tiny_model: SRModel) -> None:
    batches, guard = inputs(2), [torch.ones(1, 3, 32, 32), -torch.ones(1, 3, 32, 32)]
    without = observe_maxmin(tiny_model, batches, Bits(8, 8), ("unet", "vae"))
    guarded = observe_maxmin(tiny_model, batches, Bits(8, 8), ("unet", "vae"), guard)
    of_guard = observe_maxmin(tiny_model, guard[:1], Bits(8, 8), ("unet", "vae"))
    changed = {site for site in without if without[site] != guarded[site]}
    assert "vae.encoder.down_blocks.0.downsamplers.0.conv" in changed
    assert all(reads_bare_stream(site) for site in changed)
    for site in filter(reads_bare_stream, without):
        assert guarded[site].x_min <= min(without[site].x_min, of_guard[site].x_min) + 1e-6
        assert guarded[site].x_max >= max(without[site].x_max, of_guard[site].x_max) - 1e-6


def test_every_layer_of_the_parts_has_a_range_that_holds_zero(tiny_model: SRModel) -> None:
    sites = observe_maxmin(tiny_model, inputs(1), Bits(6, 4), ("unet",))
    assert set(sites) == set(sites_of_model(tiny_model, ("unet",)))
    assert all(site.x_min <= 0 <= site.x_max for site in sites.values())
    eight = {site for site, q in sites.items() if (q.weight_bits, q.activation_bits) == (8, 8)}
    assert eight == EIGHT_BIT_SITES & set(sites)
    assert {(q.weight_bits, q.activation_bits) for s, q in sites.items() if s not in eight} == {(6, 4)}


def test_nothing_stays_behind_in_the_model(tiny_model: SRModel) -> None:
    observe_maxmin(tiny_model, inputs(1), Bits(8, 8), ("unet", "vae"))
    modules = sites_of_model(tiny_model, ("unet", "vae")).values()
    assert not any(module._forward_pre_hooks for module in modules)


def test_nan_names_the_layer(tiny_model: SRModel) -> None:
    broken = torch.full((1, 3, 32, 32), float("nan"))
    with pytest.raises(CalibrationError, match=r"vae\.encoder\.conv_in"):
        observe_maxmin(tiny_model, [broken], Bits(8, 8), ("unet", "vae"))
    # The hooks are gone after a failure too.
    assert not tiny_model.vae.encoder.conv_in._forward_pre_hooks


def test_an_all_black_picture_calibrates(tiny_model: SRModel) -> None:
    sites = observe_maxmin(tiny_model, [torch.zeros(1, 3, 32, 32)], Bits(8, 8), ("vae",))
    assert sites["vae.encoder.conv_in"].activation_params().scale > 0
