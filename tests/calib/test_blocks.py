"""Blocks: every quantized layer in exactly one, in order of execution; recorded calls repeat what the network did."""

import pytest
import torch

from intsr.calib.learn.block_data import Recomputed, cached
from intsr.calib.learn.blocks import blocks_of_network, layer_statistics, record_input, record_output
from intsr.calib.learn.stages import probe_chunks
from intsr.calib.learn.train import CACHES
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import integer_sites

SHAPES = {"encoder": (1, 3, 32, 32), "unet": (1, 4, 16, 16), "decoder": (1, 4, 16, 16)}


def picture(name: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks(tiny_model):
    return reference_networks(tiny_model)


@pytest.mark.parametrize("name", SHAPES)
def test_every_layer_is_in_one_unit(tiny_model, networks, name):
    sites = [site for site in integer_sites(tiny_model, ("unet", "vae")) if network_of_site(site) == name]
    blocks = blocks_of_network(networks[name], sites, picture(name))
    assert sorted(site for block in blocks for site in block.sites) == sorted(sites)
    if name == "unet":
        names = [block.name for block in blocks]
        # Modules list up_blocks before mid_block; execution does not.
        assert names.index("unet.mid_block.resnets.0") < names.index("unet.up_blocks.0.resnets.0")
        assert names.index("unet.down_blocks.0.resnets.0") < names.index("unet.down_blocks.0.attentions.0")


@pytest.mark.parametrize("name", SHAPES)
def test_a_recorded_call_repeats_the_unit(tiny_model, networks, name):
    sites = [site for site in integer_sites(tiny_model, ("unet", "vae")) if network_of_site(site) == name]
    network = networks[name]
    for block in blocks_of_network(network, sites, picture(name)):
        x, call = record_input(network, block.name, picture(name))
        y = record_output(network, block.name, picture(name))
        with torch.no_grad():
            torch.testing.assert_close(call.run(network.get_submodule(block.name), x), y)
            two = call.run(network.get_submodule(block.name), torch.cat([x, x]))
        torch.testing.assert_close(two[1:], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CACHES)
def test_caches_give_the_same_pairs(networks, kind, tmp_path):
    network, block = networks["unet"], "unet.mid_block.resnets.0"
    inputs = [picture("unet", seed) for seed in range(5)]
    exact = [value + 0.1 for value in inputs]
    source = Recomputed(network, network, block, inputs, exact)
    x, y = cached(source, kind, len(inputs), 2, tmp_path).batch([3, 1])
    torch.testing.assert_close(x, torch.cat([record_input(network, block, inputs[i])[0] for i in (3, 1)]))
    torch.testing.assert_close(y, torch.cat([record_output(network, block, exact[i]) for i in (3, 1)]))
    if kind == "none":
        assert not list(tmp_path.iterdir())


def test_inputs_that_only_pass_by_count_for_the_ends(networks):
    network = networks["unet"]
    sites = {name: network.get_submodule(name) for name in ("unet.conv_in", "unet.mid_block.attentions.0.proj_in")}
    pictures = [picture("unet", seed) * (seed + 1) for seed in range(4)]
    everything = layer_statistics(network, sites, pictures)
    some = layer_statistics(network, sites, pictures[:1], iter(pictures[1:]))
    for site in sites:
        assert len(some[site].values) == 1 and len(everything[site].values) == 4
        torch.testing.assert_close(some[site].low, everything[site].low, rtol=0, atol=0)
        torch.testing.assert_close(some[site].high, everything[site].high, rtol=0, atol=0)
        assert not torch.equal(some[site].high, layer_statistics(network, sites, pictures[:1])[site].high)


@pytest.mark.parametrize(("side_px", "tried"), [(64, 24), (128, 24), (256, 6), (512, 2), (2048, 2)])
def test_larger_crops_are_tried_on_fewer(side_px, tried):
    kept, passing, guard = probe_chunks(range(48), range(60, 64), side_px)
    assert [i for chunk in kept for i in chunk] == list(range(0, 48, 48 // tried))
    assert sorted(i for chunk in (*kept, *passing) for i in chunk) == list(range(0, 48, 2))
    assert [i for chunk in guard for i in chunk] == [60, 61, 62, 63]
    assert probe_chunks([0], [], side_px) == ([[0]], [], [])
