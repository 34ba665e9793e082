"""The torch reference of a folded network: float arithmetic on quantized values, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from intsr.calib.models.modules import copy_sharing_weights, layers_of, put_modules
from intsr.kernels.quantizer import dequantize_weight, fake_quantize_torch

if TYPE_CHECKING:
    from intsr.export.fold.fold import FoldedLayer, FoldedNetwork


class FakeQuantLayer(nn.Module):
    """A Conv2d or Linear whose input and weights lie on their grids: y = layer(Q(x~); Q(W~)) + bias~.

    x~ = (x - d) / s where a LET is left in front of the quantizer, else x. A convolution's zero padding is of x:
    with a shift d it is applied before it. weight_only: Q(x~) is x~ itself.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, folded: FoldedLayer, weight_only: bool = False) -> None:
        super().__init__()
        self.weight_only = weight_only
        self.activation = folded.activation
        self.layer = copy_sharing_weights(layer)
        weight = torch.from_numpy(dequantize_weight(folded.weight_codes, folded.weight_scale))
        self.layer.weight = nn.Parameter(weight, requires_grad=False)
        channels = (1, -1, 1, 1) if weight.ndim == 4 else (-1,)
        for name, value in (("let_scale", folded.let_scale), ("let_shift", folded.let_shift)):
            buffer = None if value is None else torch.from_numpy(value).reshape(channels)
            self.register_buffer(name, buffer)
        self.padding: tuple[int, ...] = ()
        if folded.let_shift is not None and isinstance(self.layer, nn.Conv2d):
            assert isinstance(self.layer.padding, tuple)
            top, left = self.layer.padding
            self.padding, self.layer.padding = (left, left, top, top), (0, 0)

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """x~, what the quantizer sees."""
        if any(self.padding):
            x = functional.pad(x, self.padding)
        if self.let_shift is not None:
            x = x - self.let_shift
        return x if self.let_scale is None else x / self.let_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation is not None:
            x = self.transformed(x)
            x = x if self.weight_only else fake_quantize_torch(x, self.activation)
        y: torch.Tensor = self.layer(x)
        return y


def fake_quantized(network: FoldedNetwork, weight_only: bool = False) -> nn.Module:
    """A copy of the network with every folded layer replaced; float parameters are shared with the original.

    weight_only: activations stay as they are.
    """
    module = copy_sharing_weights(network.module)
    layers = layers_of(module)
    put_modules(module, {s: FakeQuantLayer(layers[s], f, weight_only) for s, f in network.layers.items()})
    return module.eval()
