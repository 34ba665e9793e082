"""A calibrated layer as engines compute it: float arithmetic on quantized values, in torch."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from intsr.calib.calibration.types import SiteQuantizer
from intsr.kernels.layer_algebra import (
    channel_axis,
    padding_before_shift,
    run_layer,
    scaled_weight,
    shifted_bias,
    transform,
)
from intsr.kernels.quantizer import QuantParams, dequantize_weight, fake_quantize_torch


class FakeQuantLayer(nn.Module):
    """y = layer(Q(x~); Q(W~)) + b~ of a Conv2d or Linear.

    x~ = (x - d) / s where a LET is left in front of the quantizer, else x. A convolution's zero padding is of x:
    with a shift d it is applied before it.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: QuantParams | None,
        *,
        let_scale: NDArray[Any] | None,
        let_shift: NDArray[Any] | None,
    ) -> None:
        """layer: for how it slides. weight, bias: Q(W~) and b~. activation: None for an input that stays
        as it is. let_scale, let_shift: s and d, (Cin,), or None for a step that is left out.
        """
        super().__init__()
        # In a tuple, so that its own weights are no part of this module's state.
        self._layer, self.activation, self.axis = (layer,), activation, channel_axis(layer)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach())
        for name, value in (("let_scale", let_scale), ("let_shift", let_shift)):
            self.register_buffer(name, None if value is None else torch.tensor(value))
        self.padding = () if let_shift is None else padding_before_shift(layer)

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """x~, what the quantizer is given."""
        if any(self.padding):
            x = functional.pad(x, self.padding)
        return transform(x, self.let_scale, self.let_shift, self.axis)

    def quantized(self, x: torch.Tensor) -> torch.Tensor:
        """Q of an x that is transformed already."""
        return x if self.activation is None else fake_quantize_torch(x, self.activation)

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The layer on an x that is transformed already, with a given W~."""
        return run_layer(self._layer[0], x, weight, self.bias, padded=bool(self.padding))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(self.quantized(self.transformed(x)), self.weight)


def let_weight(layer: nn.Conv2d | nn.Linear, quantizer: SiteQuantizer) -> torch.Tensor:
    """W~ of a layer of the model, float32."""
    weight = layer.weight.detach().float()
    return weight if quantizer.let_scale is None else scaled_weight(weight, torch.tensor(quantizer.let_scale))


@torch.no_grad()
def calibrated_layer(layer: nn.Conv2d | nn.Linear, quantizer: SiteQuantizer) -> FakeQuantLayer:
    """A layer of the model with what calibration learned of it."""
    codes, scale = quantizer.quantize_weight(let_weight(layer, quantizer).numpy())
    bias, activation = layer.bias, quantizer.activation_params()
    if quantizer.let_shift is not None:
        bias = shifted_bias(bias, layer.weight, torch.tensor(quantizer.let_shift))
    weight = torch.from_numpy(dequantize_weight(codes, scale))
    let = {"let_scale": quantizer.let_scale, "let_shift": quantizer.explicit_shift()}
    return FakeQuantLayer(layer, weight, bias, activation, **let)
