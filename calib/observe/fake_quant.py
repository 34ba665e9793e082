"""A calibrated layer as engines compute it: float arithmetic on quantized values, in torch."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from intsr.calib.calibration.types import SiteQuantizer
from intsr.kernels.layer_algebra import (
    Layer,
    branch_weight,
    channel_axis,
    padding_before_shift,
    run_branch,
    run_layer,
    scaled_weight,
    shifted_bias,
    transform,
)
from intsr.kernels.quantizer import QuantParams, dequantize_weight, fake_quantize_torch
from intsr.kernels.rotation import rotate


class FakeQuantLayer(nn.Module):
    """y = layer(Q(x~); Q(W~)) + b~ of a Conv2d or Linear, and L x where it has a branch; of a Conv3d without.

    x~ = (x - d) / s where a LET is left in front of the quantizer, else x. A convolution's zero padding is of x:
    with a shift d it is applied before it.
    """

    def __init__(
        self,
        layer: Layer,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: QuantParams | None,
        *,
        let_scale: NDArray[Any] | None = None,
        let_shift: NDArray[Any] | None = None,
        branch: tuple[torch.Tensor, torch.Tensor] | None = None,
        rotation: int = 0,
        row_rotation: int = 0,
    ) -> None:
        """layer: for how it slides. weight, bias: Q(W~) and b~. activation: None for an input that stays
        as it is. let_scale, let_shift: s and d, (Cin,), or None for a step that is left out. branch: up and down.
        rotation, row_rotation: as of `SiteQuantizer`.
        """
        super().__init__()
        # In a tuple, so that its own weights are no part of this module's state.
        self._layer, self.activation, self.axis = (layer,), activation, channel_axis(layer)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach())
        for name, value in (("let_scale", let_scale), ("let_shift", let_shift)):
            self.register_buffer(name, None if value is None else torch.tensor(value))
        for name, part in zip(("up", "down"), branch or (None, None), strict=True):
            self.register_buffer(name, part)
        self.rotation, self.row_rotation = rotation, row_rotation
        self.padding = () if let_shift is None else padding_before_shift(layer)

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """x~, what the quantizer is given."""
        x = rotate(x, self.rotation, self.axis)
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
        y = self.product(self.quantized(self.transformed(x)), self.weight)
        y = rotate(y, self.row_rotation, -1)
        return y if self.up is None else y + run_branch(self._layer[0], x, self.up, self.down)


def let_weight(layer: nn.Conv2d | nn.Linear, quantizer: SiteQuantizer) -> torch.Tensor:
    """W~ of a layer of the model, float32: of what its branch leaves, where it has one, or rotated."""
    weight = integer_part(layer.weight.detach().float(), quantizer)
    return weight if quantizer.let_scale is None else scaled_weight(weight, torch.tensor(quantizer.let_scale))


def integer_part(weight: torch.Tensor, quantizer: SiteQuantizer) -> torch.Tensor:
    """H' (W - L) H, of the first rows where `weight` has fewer."""
    branch = quantizer.branch()
    if branch is not None:
        up, down = (torch.tensor(part).to(weight.dtype) for part in branch)
        weight = weight - branch_weight(up[: len(weight)], down)
    return rotate(rotate(weight, quantizer.rotation, 1), quantizer.row_rotation, 0)


@torch.no_grad()
def calibrated_layer(layer: nn.Conv2d | nn.Linear, quantizer: SiteQuantizer) -> FakeQuantLayer:
    """A layer of the model with what calibration learned of it."""
    codes, scale = quantizer.quantize_weight(let_weight(layer, quantizer).numpy())
    bias, activation = layer.bias, quantizer.activation_params()
    if bias is not None:
        bias = rotate(bias, quantizer.row_rotation, 0)
    if quantizer.let_shift is not None:
        bias = shifted_bias(bias, integer_part(layer.weight, quantizer), torch.tensor(quantizer.let_shift))
    weight = torch.from_numpy(dequantize_weight(codes, scale))
    branch = quantizer.branch()
    return FakeQuantLayer(
        layer,
        weight,
        bias,
        activation,
        let_scale=quantizer.let_scale,
        let_shift=quantizer.explicit_shift(),
        branch=branch and (torch.tensor(branch[0]), torch.tensor(branch[1])),
        rotation=quantizer.rotation,
        row_rotation=quantizer.row_rotation,
    )
