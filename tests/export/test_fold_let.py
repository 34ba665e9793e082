"""Every place where LET goes, against the module before it: float64, 1e-10."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from intsr.calib.sites import MIN_INTEGER_CHANNELS
from intsr.export.fold import layer_modules
from intsr.export.fold_let import Let, fuse_let
from intsr.export.specialize import SpecializedModel
from intsr.types import NETWORKS


def apply_explicitly(module: nn.Module, sites: frozenset[str], lets: dict[str, Let]) -> None:
    """What the elementwise step in front of a quantizer does: x~ = (pad(x) - d) / s."""
    for site in sites:
        layer, let = module.get_submodule(site), lets[site]
        channels = (1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        pads = (0, 0)
        if isinstance(layer, nn.Conv2d):
            pads, layer.padding = layer.padding, (0, 0)

        def step(_: nn.Module, inputs: tuple[torch.Tensor], let: Let = let, channels=channels, pads=pads):  # type: ignore[no-untyped-def]
            x = functional.pad(inputs[0], (pads[1], pads[1], pads[0], pads[0])) if any(pads) else inputs[0]
            return (x - let.d.reshape(channels)) / let.s.reshape(channels)

        layer.register_forward_pre_hook(step)


def random_lets(module: nn.Module, with_shift: bool, shared: bool = True) -> dict[str, Let]:
    generator = torch.Generator().manual_seed(4)
    lets: dict[str, Let] = {}
    for site, layer in layer_modules(module).items():
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
def test_fused_equals_unfused(tiny_specialized: SpecializedModel, name: str, with_shift: bool, shared: bool) -> None:
    module = copy.deepcopy(tiny_specialized.networks()[name]).double()
    lets = random_lets(module, with_shift, shared)
    result = fuse_let(module, lets)
    fused, explicit = result.module, result.explicit
    apply_explicitly(fused, explicit, lets)
    x = torch.randn(1, 3 if name == "encoder" else 4, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, got = module(x), fused(x)
    assert (got - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))


def test_what_folds_for_free(tiny_specialized: SpecializedModel) -> None:
    module = tiny_specialized.unet
    lets = {site: Let(let.s.float(), let.d.float()) for site, let in random_lets(module, False).items()}
    explicit = fuse_let(module, lets).explicit
    free = set(lets) - explicit
    block = "unet.down_blocks.0.attentions.0"
    inside = f"{block}.transformer_blocks.0"
    for site in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn1.to_out.0", "attn2.to_out.0"):
        assert f"{inside}.{site}" in free, site
    assert {f"{inside}.ff.net.0.proj", f"{inside}.ff.net.2", f"{block}.proj_in"} <= free
    # Behind SiLU, and on the bare residual stream, nothing can take it.
    assert all("resnets" in site or "samplers" in site or "conv" in site or "proj_out" in site for site in explicit)


def test_a_shift_does_not_go_through_attention_or_geglu(tiny_specialized: SpecializedModel) -> None:
    lets = {site: Let(let.s.float(), let.d.float()) for site, let in random_lets(tiny_specialized.unet, True).items()}
    explicit = fuse_let(tiny_specialized.unet, lets).explicit
    assert {site for site in lets if site.endswith(("to_out.0", "ff.net.2"))} <= explicit


def test_q_k_and_v_that_differ_stay_explicit(tiny_specialized: SpecializedModel) -> None:
    lets = random_lets(tiny_specialized.unet, False, shared=False)
    lets = {site: Let(let.s.float(), let.d.float()) for site, let in lets.items()}
    explicit = fuse_let(tiny_specialized.unet, lets).explicit
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" in explicit


def test_the_module_itself_is_untouched(tiny_specialized: SpecializedModel) -> None:
    before = {key: value.clone() for key, value in tiny_specialized.unet.state_dict().items()}
    lets = random_lets(tiny_specialized.unet, True)
    fuse_let(tiny_specialized.unet, {site: Let(let.s.float(), let.d.float()) for site, let in lets.items()})
    after = tiny_specialized.unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    channels=st.integers(1, 5),
    zero_channel=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_one_convolution_of_any_shape(
    kernel: int, stride: int, padding: int, channels: int, zero_channel: bool, bias: bool
) -> None:
    torch.manual_seed(kernel + channels)
    owner = nn.Module()
    owner.conv = nn.Conv2d(channels, 3, kernel, stride, padding, bias=bias).double().requires_grad_(False)
    if zero_channel:
        owner.conv.weight[:, 0] = 0
    lets = {"conv": Let(torch.rand(channels).double() * 9 + 1e-3, torch.randn(channels).double() * 5)}
    result = fuse_let(owner, lets)
    fused, explicit = result.module, result.explicit
    assert explicit == {"conv"}
    apply_explicitly(fused, explicit, lets)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(fused.conv(x), owner.conv(x), rtol=0, atol=1e-10)


def test_the_threshold_for_integers_is_the_documented_one() -> None:
    assert MIN_INTEGER_CHANNELS == 16
