"""Fold learned equivalent transformations (LET) where they cost nothing.

    x~ = (x - d) / s,   W~ = W s,   b~ = b + W d        (per input channel; W x + b = W~ x~ + b~)

The division by s and the shift by d go, exactly, into what makes x:

    LayerNorm, or GroupNorm without activation:   gamma / s,  (beta - d) / s
    to_out behind attention:                      rows of to_v / s (or the constant value), d = 0
    ff.net.2 behind GEGLU:                        value rows of ff.net.0.proj / s (not the gate's), d = 0

Everywhere else they stay an elementwise step in front of the quantizer. docs/theory.md, "Folding LET".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from intsr.calib.models.families.sd21 import let_maker, let_readers, let_sink
from intsr.export.fold.let_sites import explicit_sites
from intsr.kernels.layer_algebra import scaled_weight, shifted_bias
from intsr.kernels.rotation import rotate


@dataclass(frozen=True, slots=True)
class Let:
    """s and d of one layer's input channels, float32 (Cin,), s > 0.

    rotation: of the input, which s and d come behind. row_rotation: of the layer's integer weights and bias.
    """

    s: torch.Tensor
    d: torch.Tensor
    rotation: int = 0
    row_rotation: int = 0

    def offset(self) -> torch.Tensor:
        """d as a part of the input that is not rotated, (Cin,): H is its own inverse."""
        return rotate(self.d, self.rotation, 0)


def fuse_let(
    module: nn.Module, lets: Mapping[str, Let], rotations: Mapping[str, int] = MappingProxyType({})
) -> tuple[frozenset[str], dict[str, torch.Tensor]]:
    """Every LET into weights and biases, and into what makes the input where that is exact.

    The module itself is changed: what a weight was before is gone, one by one. It computes the same as before once
    the inputs of the sites that are returned first, the explicit ones, are divided and shifted. Norms whose consumers
    do not all share one (s, d) are left alone. rotations: of `fuse_rotations`, which comes before; s and d are then
    of what is rotated, and the site's own weights, of which codes are made already, are no more than a place.

    Returned second is what the rows of a site's weights (its output channels) were multiplied by, float64 (Cout,),
    for the sites behind which another site's LET went: the scales of integer weights must follow.
    """
    for site, let in lets.items():
        layer: Any = module.get_submodule(site)
        if let.d.any():
            owed = rotate(shifted_bias(None, layer.weight, let.offset()), let.row_rotation, 0)
            layer.bias = nn.Parameter(owed if layer.bias is None else layer.bias + owed, requires_grad=False)
        layer.weight = nn.Parameter(scaled_weight(layer.weight, let.s), requires_grad=False)
    numbers = {site: (let.s.numpy(), let.d.numpy()) for site, let in lets.items()}
    explicit = explicit_sites(numbers, _without_maker(module, lets) | {site for site in lets if rotations.get(site)})
    row_factors: dict[str, torch.Tensor] = {}
    done: set[str] = set()
    for site, let in lets.items():
        if site in explicit or site in done:
            continue
        name = let_maker(site)
        maker: Any = module.get_submodule(name)
        match let_sink(site).into:
            case "norm":
                done.update(let_readers(site))
                maker.weight = nn.Parameter(maker.weight / let.s, requires_grad=False)
                maker.bias = nn.Parameter((maker.bias - let.d) / let.s, requires_grad=False)
            case "value":
                maker.value = maker.value / let.s.reshape(1, maker.heads, 1, -1)
            case "rows":
                row_factors[name] = _divide_rows(maker, let.s)
    return explicit, row_factors


def _without_maker(module: nn.Module, lets: Mapping[str, Let]) -> set[str]:
    """The sites in front of which a family has a norm, and this model nothing."""
    in_front = {site: let_maker(site) for site in lets if let_sink(site).into == "norm"}
    return {site for site, name in in_front.items() if isinstance(module.get_submodule(name), nn.Identity)}


def _divide_rows(producer: Any, s: torch.Tensor) -> torch.Tensor:
    """Divide the producer's first rows, one a channel of s, and return every row's factor."""
    factors = torch.ones(producer.weight.shape[0], dtype=torch.float64)
    factors[: len(s)] = 1 / s.double()
    own = factors.to(producer.weight.dtype)
    producer.weight = nn.Parameter(producer.weight * own[:, None], requires_grad=False)
    if producer.bias is not None:
        producer.bias = nn.Parameter(producer.bias * own, requires_grad=False)
    return factors
