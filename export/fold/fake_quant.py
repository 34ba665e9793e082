"""The torch reference of a folded network: float arithmetic on quantized values, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.models.modules import copy_sharing_weights, layers_of, put_modules
from intsr.calib.observe.fake_quant import FakeQuantLayer
from intsr.kernels.quantizer import dequantize_weight

if TYPE_CHECKING:
    from intsr.export.fold.fold import FoldedLayer, FoldedNetwork


def folded_layer(layer: nn.Conv2d | nn.Linear, folded: FoldedLayer, weight_only: bool = False) -> FakeQuantLayer:
    """One layer of a folded network, with its float bias. weight_only: its input stays as it is."""
    weight = torch.from_numpy(dequantize_weight(folded.weight_codes, folded.weight_scale))
    activation = None if weight_only else folded.activation
    branch = None
    if folded.branch is not None:
        up, down = (torch.from_numpy(part).to(layer.weight.dtype) for part in folded.branch)
        branch = up, down
    let: Any = {"let_scale": folded.let_scale, "let_shift": folded.let_shift}
    return FakeQuantLayer(layer, weight, layer.bias, activation, branch=branch, rotation=folded.rotation, **let)


def fake_quantized(network: FoldedNetwork, weight_only: bool = False) -> nn.Module:
    """A copy of the network with every folded layer replaced; float parameters are shared with the original.

    weight_only: activations stay as they are.
    """
    module = copy_sharing_weights(network.module)
    layers = layers_of(module)
    put_modules(module, {site: folded_layer(layers[site], f, weight_only) for site, f in network.layers.items()})
    return module.eval()
