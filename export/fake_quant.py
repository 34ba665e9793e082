"""The torch reference of a folded network: float arithmetic on quantized values, layer by layer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from intsr.kernels.quantizer import dequantize_weight, fake_quantize_torch

if TYPE_CHECKING:
    from intsr.export.fold import FoldedLayer, FoldedNetwork


class FakeQuantLayer(nn.Module):
    """A Conv2d or Linear whose input and weights lie on their grids: y = layer(Q(x); Q(W)) + bias."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, folded: FoldedLayer) -> None:
        super().__init__()
        self.activation = folded.activation
        self.layer = copy.deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})
        weight = torch.from_numpy(dequantize_weight(folded.weight_codes, folded.weight_scale))
        self.layer.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(fake_quantize_torch(x, self.activation))
        return y


def fake_quantized(network: FoldedNetwork) -> nn.Module:
    """A copy of the network with every folded layer replaced; float parameters are shared with the original."""
    module = copy.deepcopy(network.module, {id(p): p for p in network.module.parameters()})
    for site, folded in network.layers.items():
        parent, _, name = site.rpartition(".")
        owner = module.get_submodule(parent)
        layer = owner.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        setattr(owner, name, FakeQuantLayer(layer, folded))
    return module.eval()
