"""Fold learned equivalent transformations (LET) where they cost nothing.

    x~ = (x - d) / s,   W~ = W s,   b~ = b + W d        (per input channel; W x + b = W~ x~ + b~)

The division by s and the shift by d go, exactly, into what makes x:

    LayerNorm, or GroupNorm without activation:   gamma / s,  (beta - d) / s
    to_out behind attention:                      rows of to_v / s (or the constant value), d = 0
    ff.net.2 behind GEGLU:                        value rows of ff.net.0.proj / s (not the gate's), d = 0

Everywhere else they stay an elementwise step in front of the quantizer. Source: METHODS sections 2 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from intsr.export.fold.specialize import ConstantContextAttention
from intsr.kernels.layer_algebra import scaled_weight, shifted_bias
from intsr.kernels.quantizer import round_scale


@dataclass(frozen=True, slots=True)
class Let:
    """s and d of one layer's input channels, float32 (Cin,), s > 0.

    held_s: s as an engine has it where it divides by it. 1 / s is what an fp16 graph holds, so it is exact there;
    what goes into other weights is s itself.
    """

    s: torch.Tensor
    d: torch.Tensor

    @property
    def held_s(self) -> torch.Tensor:
        return 1 / torch.from_numpy(round_scale((1 / self.s).numpy()))


@dataclass(frozen=True, slots=True)
class FusedNetwork:
    """module: with every LET in weights and biases. explicit: sites whose x~ still has to be made.

    row_factors: what the rows of a site's weights (its output channels) were multiplied by, float64 (Cout,), for the
    sites behind which another site's LET went: the scales of integer weights must follow.
    """

    module: nn.Module
    explicit: frozenset[str]
    row_factors: Mapping[str, torch.Tensor]


def fuse_let(fused: nn.Module, lets: Mapping[str, Let]) -> FusedNetwork:
    """Every LET into weights and biases, and into what makes the input where that is exact.

    The module itself is changed: what a weight was before is gone, one by one. It computes the same as before once
    the explicit sites' inputs are divided and shifted. Norms whose consumers do not all share one (s, d) are left
    alone.
    """
    for site, let in lets.items():
        layer: Any = fused.get_submodule(site)
        if let.d.any():
            layer.bias = nn.Parameter(shifted_bias(layer.bias, layer.weight, let.d), requires_grad=False)
        layer.weight = nn.Parameter(scaled_weight(layer.weight, let.s), requires_grad=False)
    free: set[str] = set()
    row_factors: dict[str, torch.Tensor] = {}
    for name, owner in fused.named_modules():
        prefix = f"{name}." if name else ""
        free.update(_fuse_owner(owner, prefix, lets, row_factors))
    return FusedNetwork(fused, frozenset(set(lets) - free), row_factors)


def _fuse_owner(owner: Any, prefix: str, lets: Mapping[str, Let], row_factors: dict[str, torch.Tensor]) -> list[str]:
    """Fuse what one module contains; returns the sites that are free now."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    done: list[str] = []
    if isinstance(owner, BasicTransformerBlock):
        qkv = ["attn1.to_q", "attn1.to_k", "attn1.to_v"]
        done += _fuse_norm(owner.norm1, prefix, qkv, lets)
        done += _fuse_norm(owner.norm2, prefix, ["attn2.to_q"], lets)
        done += _fuse_norm(owner.norm3, prefix, ["ff.net.0.proj"], lets)
        done += _fuse_rows(owner.ff.net[0].proj, f"{prefix}ff.net.0.proj", f"{prefix}ff.net.2", lets, row_factors)
    elif isinstance(owner, Transformer2DModel):
        done += _fuse_norm(owner.norm, prefix, ["proj_in"], lets)
    elif isinstance(owner, ConstantContextAttention):
        let = lets.get(f"{prefix}to_out.0")
        if let is not None and not let.d.any():
            owner.value = owner.value / let.s.reshape(1, owner.heads, 1, -1)
            done.append(f"{prefix}to_out.0")
    elif isinstance(owner, Attention):
        if owner.group_norm is not None:
            done += _fuse_norm(owner.group_norm, prefix, ["to_q", "to_k", "to_v"], lets)
        done += _fuse_rows(owner.to_v, f"{prefix}to_v", f"{prefix}to_out.0", lets, row_factors)
    return done


def _fuse_norm(norm: Any, prefix: str, consumers: list[str], lets: Mapping[str, Let]) -> list[str]:
    """gamma / s and (beta - d) / s, where all consumers share s and d."""
    sites = [prefix + consumer for consumer in consumers]
    if not all(site in lets for site in sites):
        return []
    first = lets[sites[0]]
    held = first.held_s
    if not all(torch.equal(lets[site].held_s, held) and torch.equal(lets[site].d, first.d) for site in sites):
        return []
    norm.weight = nn.Parameter(norm.weight / first.s, requires_grad=False)
    norm.bias = nn.Parameter((norm.bias - first.d) / first.s, requires_grad=False)
    return sites


def _fuse_rows(
    producer: Any, producer_site: str, site: str, lets: Mapping[str, Let], row_factors: dict[str, torch.Tensor]
) -> list[str]:
    """The producer's first rows, one a channel of the site's input, divided by s. A shift cannot follow."""
    let = lets.get(site)
    if let is None or let.d.any():
        return []
    factors = torch.ones(producer.weight.shape[0], dtype=torch.float64)
    factors[: len(let.s)] = 1 / let.s.double()
    own = factors.to(producer.weight.dtype)
    producer.weight = nn.Parameter(producer.weight * own[:, None], requires_grad=False)
    if producer.bias is not None:
        producer.bias = nn.Parameter(producer.bias * own, requires_grad=False)
    row_factors[producer_site] = factors
    return [site]
