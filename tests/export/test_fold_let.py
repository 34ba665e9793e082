"""Every place where LET goes, against the module before it: float64, 1e-10."""

from __future__ import annotations

import copy

import pytest
import torch
from folding import Modules
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from intsr.calib.models.modules import copy_sharing_weights, layers_of
from intsr.export.fold.let import FusedNetwork, Let, fuse_let
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
    module = copy.deepcopy(tiny_specialized[name]).double()
    lets = random_lets(module, with_shift, shared)
    result = fuse_let(copy_sharing_weights(module), lets)
    fused, explicit = result.module, result.explicit
    apply_explicitly(fused, explicit, lets)
    x = torch.randn(1, 3 if name == "encoder" else 4, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, got = module(x), fused(x)
    assert (got - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))


sides = st.tuples(st.integers(1, 3), st.integers(1, 3))
exponents = st.lists(st.floats(-4, 4), min_size=1, max_size=5)


@given(
    kernel=sides,
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    exponents=exponents,
    zero_channel=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_one_convolution_of_any_shape(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    exponents: list[float],
    zero_channel: bool,
    bias: bool,
) -> None:
    """s from 1e-4 to 1e4; a channel of zeros in input and weights."""
    channels = len(exponents)
    torch.manual_seed(kernel[0] + channels)
    owner = nn.Module()
    owner.conv = nn.Conv2d(channels, 3, kernel, stride, padding, dilation, bias=bias).double().requires_grad_(False)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    if zero_channel:
        owner.conv.weight[:, 0] = 0
        x[:, 0] = 0
    lets = {"conv": Let(10 ** torch.tensor(exponents, dtype=torch.float64), torch.randn(channels).double() * 5)}
    result = fuse_let(owner, lets)
    fused, explicit = result.module, result.explicit
    assert explicit == {"conv"}
    apply_explicitly(fused, explicit, lets)
    torch.testing.assert_close(fused.conv(x), owner.conv(x), rtol=0, atol=1e-10)


@given(exponents=exponents, outputs=st.integers(1, 4), bias=st.booleans(), tokens=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_one_linear_layer(exponents: list[float], outputs: int, bias: bool, tokens: int) -> None:
    torch.manual_seed(len(exponents))
    owner = nn.Module()
    owner.linear = nn.Linear(len(exponents), outputs, bias).double().requires_grad_(False)
    d = torch.randn(len(exponents)).double() * 5
    lets = {"linear": Let(10 ** torch.tensor(exponents, dtype=torch.float64), d)}
    result = fuse_let(owner, lets)
    assert result.explicit == {"linear"}
    apply_explicitly(result.module, result.explicit, lets)
    x = torch.randn(2, tokens, len(exponents), dtype=torch.float64)
    torch.testing.assert_close(result.module.linear(x), owner.linear(x), rtol=0, atol=1e-10)


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


def compare_fused(module: nn.Module, name: str, lets: dict[str, Let]) -> FusedNetwork:
    result = fuse_let(copy_sharing_weights(module), lets)
    apply_explicitly(result.module, result.explicit, lets)
    x = torch.randn(1, 3 if name == "encoder" else 4, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, got = module(x), result.module(x)
    assert (got - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))
    return result


@pytest.mark.parametrize(("name", "sites", "taker", "may_shift"), TARGETS, ids=target_names)
def test_each_target_alone(
    tiny_specialized: Modules, name: str, sites: list[str], taker: str, may_shift: bool
) -> None:
    """Nothing is left in front of the quantizers, the taker has it, and the network computes the same."""
    module = copy.deepcopy(tiny_specialized[name]).double()
    lets = shared_lets(module, sites, may_shift)
    result = compare_fused(module, name, lets)
    assert result.explicit == frozenset()
    before = module.state_dict()
    changed = {
        key.rpartition(".")[0]
        for key, value in result.module.state_dict().items()
        if key not in before or not torch.equal(value, before[key])
    }
    assert changed == {*sites, taker}
    s = lets[sites[0]].s
    if taker in result.row_factors:
        factors = result.row_factors[taker]
        assert torch.equal(factors[: len(s)], 1 / s) and bool((factors[len(s) :] == 1).all())
        rows = result.module.get_submodule(taker).weight
        torch.testing.assert_close(rows, before[f"{taker}.weight"] * factors[:, None], rtol=1e-12, atol=0)
    else:
        assert not result.row_factors


@pytest.mark.parametrize(
    ("name", "sites", "taker", "may_shift"), [target for target in TARGETS if len(target[1]) > 1 or not target[3]]
)
def test_each_target_refuses_what_it_cannot_take(
    tiny_specialized: Modules, name: str, sites: list[str], taker: str, may_shift: bool
) -> None:
    """A shift through rows, or readers of one norm that do not agree: explicit then, and exact as well."""
    module = copy.deepcopy(tiny_specialized[name]).double()
    lets = shared_lets(module, sites, True)
    variants = [lets] if not may_shift else []
    for odd in sites if may_shift else []:
        without = {site: let for site, let in lets.items() if site != odd}
        other_s = {**lets, odd: Let(lets[odd].s * 2, lets[odd].d)}
        other_d = {**lets, odd: Let(lets[odd].s, lets[odd].d + 1)}
        variants += [without, other_s, other_d]
    for variant in variants:
        result = compare_fused(module, name, variant)
        assert result.explicit == set(variant)
        before, after = (m.get_submodule(taker).state_dict() for m in (module, result.module))
        own = [key for key in before if "." not in key]
        assert own and all(torch.equal(before[key], after[key]) for key in own)
