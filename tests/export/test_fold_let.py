"""Every place where LET goes, by the family's table and against the module before it: float64, 1e-10."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from folding import Modules
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from intsr.calib.models.families.sd21 import LET_SINKS, let_maker, let_readers, let_sink
from intsr.calib.models.modules import copy_sharing_weights, layers_of
from intsr.export.fold.let import Let, fuse_let
from intsr.kernels.layer_algebra import channel_axis, padding_before_shift, transform
from intsr.types import NETWORKS


def check_fused(module: nn.Module, x: torch.Tensor, lets: dict[str, Let]) -> tuple[nn.Module, frozenset[str], dict]:
    """Fuse a copy, which computes the same once x~ = (pad(x) - d) / s is what the explicit sites' layers get."""
    fused = copy_sharing_weights(module)
    explicit, row_factors = fuse_let(fused, lets)
    stepped = copy_sharing_weights(fused)
    for site in explicit:
        layer, let = stepped.get_submodule(site), lets[site]
        step = partial(transform, s=let.s, d=let.d, axis=channel_axis(layer))
        padding = padding_before_shift(layer)
        if padding:
            layer.padding = (0, 0)
        layer.register_forward_pre_hook(lambda _, xs, step=step, pads=padding: step(functional.pad(xs[0], pads)))
    with torch.no_grad():
        expected, got = module(x), stepped(x)
    assert (got - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))
    return fused, explicit, row_factors


def network_and_input(networks: Modules, name: str) -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(1, 3 if name == "encoder" else 4, 16, 16, dtype=torch.float64)
    return copy.deepcopy(networks[name]).double(), x


def random_lets(module: nn.Module, with_shift: bool, shared: bool = True) -> dict[str, Let]:
    generator = torch.Generator().manual_seed(4)
    lets: dict[str, Let] = {}
    for site, layer in layers_of(module).items():
        owner, _, name = site.rpartition(".")
        channels = layer.weight.shape[1]
        s = torch.rand(channels, generator=generator, dtype=torch.float64) * 3 + 0.2
        d = torch.randn(channels, generator=generator, dtype=torch.float64) * with_shift
        if shared and name in ("to_k", "to_v"):
            s, d = lets[f"{owner}.to_q"].s, lets[f"{owner}.to_q"].d
        lets[site] = Let(s, d)
    return lets


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_shift", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_fused_equals_unfused(tiny_specialized: Modules, name: str, with_shift: bool, shared: bool) -> None:
    module, x = network_and_input(tiny_specialized, name)
    check_fused(module, x, random_lets(module, with_shift, shared))


pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    exponents=st.lists(st.floats(-4, 4), min_size=1, max_size=5),
    zero_channel=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_one_convolution_of_any_shape(kernel, exponents, zero_channel, bias, **sizes) -> None:  # type: ignore[no-untyped-def]
    """s from 1e-4 to 1e4; a channel of zeros in input and weights."""
    channels = len(exponents)
    torch.manual_seed(channels)
    owner = nn.Sequential(nn.Conv2d(channels, 3, kernel, bias=bias, **sizes)).double().requires_grad_(False)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    if zero_channel:
        owner[0].weight[:, 0] = 0
        x[:, 0] = 0
    let = Let(10 ** torch.tensor(exponents, dtype=torch.float64), torch.randn(channels).double() * 5)
    _, explicit, _ = check_fused(owner, x, {"0": let})
    assert explicit == {"0"}


BLOCK = "unet.mid_block.attentions.0"
INSIDE = f"{BLOCK}.transformer_blocks.0"
ENCODER_ATTENTION = "vae.encoder.mid_block.attentions.0"
DECODER_ATTENTION = "vae.decoder.mid_block.attentions.0"
# Where a LET goes for nothing: (network, the sites that share it, the module that takes it, whether d may go along).
TARGETS = [
    ("unet", [f"{INSIDE}.attn1.to_{end}" for end in "qkv"], f"{INSIDE}.norm1", True),
    ("unet", [f"{INSIDE}.attn2.to_q"], f"{INSIDE}.norm2", True),
    ("unet", [f"{INSIDE}.ff.net.0.proj"], f"{INSIDE}.norm3", True),
    ("unet", [f"{BLOCK}.proj_in"], f"{BLOCK}.norm", True),
    ("encoder", [f"{ENCODER_ATTENTION}.to_{end}" for end in "qkv"], f"{ENCODER_ATTENTION}.group_norm", True),
    ("decoder", [f"{DECODER_ATTENTION}.to_{end}" for end in "qkv"], f"{DECODER_ATTENTION}.group_norm", True),
    ("unet", [f"{INSIDE}.attn1.to_out.0"], f"{INSIDE}.attn1.to_v", False),
    ("encoder", [f"{ENCODER_ATTENTION}.to_out.0"], f"{ENCODER_ATTENTION}.to_v", False),
    ("unet", [f"{INSIDE}.ff.net.2"], f"{INSIDE}.ff.net.0.proj", False),
    ("unet", [f"{INSIDE}.attn2.to_out.0"], f"{INSIDE}.attn2", False),
]
target_names = [f"{sites[0].removesuffix('.0').rpartition('attentions.0.')[2]}-{name}" for name, sites, *_ in TARGETS]


def shared_lets(module: nn.Module, sites: list[str], with_shift: bool) -> dict[str, Let]:
    """One s from 1e-4 to 1e4, and one d, for all of `sites`."""
    channels = module.get_submodule(sites[0]).weight.shape[1]
    generator = torch.Generator().manual_seed(channels)
    s = 10 ** (torch.rand(channels, generator=generator, dtype=torch.float64) * 8 - 4)
    d = torch.randn(channels, generator=generator, dtype=torch.float64) * with_shift
    return dict.fromkeys(sites, Let(s, d))


@pytest.mark.parametrize(("name", "sites", "taker", "may_shift"), TARGETS, ids=target_names)
def test_each_target_alone(
    tiny_specialized: Modules, name: str, sites: list[str], taker: str, may_shift: bool
) -> None:
    """Nothing is left in front of the quantizers, the taker has it, and the network computes the same."""
    module, x = network_and_input(tiny_specialized, name)
    lets = shared_lets(module, sites, may_shift)
    fused, explicit, row_factors = check_fused(module, x, lets)
    assert explicit == frozenset()
    before = module.state_dict()
    changed = {
        key.rpartition(".")[0]
        for key, value in fused.state_dict().items()
        if key not in before or not torch.equal(value, before[key])
    }
    assert changed == {*sites, taker}
    assert set(row_factors) == ({taker} if not may_shift and "attn2" not in taker else set())
    if taker in row_factors:
        factors, s = row_factors[taker], lets[sites[0]].s
        assert torch.equal(factors[: len(s)], 1 / s) and bool((factors[len(s) :] == 1).all())
        rows = fused.get_submodule(taker).weight
        torch.testing.assert_close(rows, before[f"{taker}.weight"] * factors[:, None], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "sites", "taker", "may_shift"), [target for target in TARGETS if len(target[1]) > 1 or not target[3]]
)
def test_each_target_refuses_what_it_cannot_take(
    tiny_specialized: Modules, name: str, sites: list[str], taker: str, may_shift: bool
) -> None:
    """A shift through rows, or readers of one norm that do not agree: explicit then, and exact as well."""
    module, x = network_and_input(tiny_specialized, name)
    lets = shared_lets(module, sites, True)
    variants = [] if may_shift else [lets]
    for odd in sites if may_shift else []:
        without = {site: let for site, let in lets.items() if site != odd}
        other_s = {**lets, odd: Let(lets[odd].s * 2, lets[odd].d)}
        other_d = {**lets, odd: Let(lets[odd].s, lets[odd].d + 1)}
        variants += [without, other_s, other_d]
    for variant in variants:
        fused, explicit, _ = check_fused(module, x, variant)
        assert explicit == set(variant)
        before, after = (m.get_submodule(taker).state_dict() for m in (module, fused))
        own = [key for key in before if "." not in key]
        assert own and all(torch.equal(before[key], after[key]) for key in own)


def test_every_site_that_a_norm_feeds(tiny_specialized: Modules) -> None:
    readers = {site for site in layers_of(tiny_specialized["unet"]) if let_readers(site)}
    ends = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj")
    expected = {f"{BLOCK}.proj_in", *(f"{INSIDE}.{end}" for end in ends)}
    assert {site for site in readers if site.startswith(BLOCK)} == expected
    assert let_readers(f"{DECODER_ATTENTION}.to_k") == tuple(f"{DECODER_ATTENTION}.to_{end}" for end in "qkv")
    assert let_readers(f"{INSIDE}.attn2.to_q") == (f"{INSIDE}.attn2.to_q",)


def test_every_layer_has_a_place_that_is_there_or_a_reason(tiny_specialized: Modules) -> None:
    met = set()
    for module in tiny_specialized.values():
        for site in layers_of(module):
            sink = let_sink(site)
            met.add(sink)
            assert (sink.into == "none") == bool(sink.why)
            if sink.into != "none":
                module.get_submodule(let_maker(site))
                assert all(reader in layers_of(module) for reader in let_readers(site))
    # Constants are gone from specialized networks, and Wan's feed-forward is in none of these.
    assert met == {sink for sink in LET_SINKS if "constant" not in sink.why and not sink.ends[0].startswith(".ffn.")}


def test_it_needs_no_torch() -> None:
    families = ", ".join(
        f"intsr.calib.models.families.{name}" for name in ("sd21", "sd21_ldm", "architecture", "supported")
    )
    modules = f"intsr.export.fold.let_sites, intsr.engines.report.measure.layer_names, {families}"
    code = f"import sys; sys.modules['torch'] = sys.modules['diffusers'] = None; import {modules}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
