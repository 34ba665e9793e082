"""The official PassionSR forward pass, to the last rounding, from the model's own modules.

    quantizer    D = (max - min) / (2**b - 1), z = R(min / D), y = (clamp(R(x / D) - z, 0, 2**b - 1) + z) D
    convolution  conv(Q((x - o) / s), Q(W s), Q(b)) + conv0(o 1, W)
    linear       lin(Q((x + o) / s), Q(W s), Q(b)) + W o        (a sign slip: in full precision W x + b + 2 W o)
    attention    softmax(Q(q s_qk) Q(k / s_qk)^T / sqrt(d)),  Q(weights s_vw) Q(v / s_vw)

R rounds half away from zero. Weights are split at Cin // 2, activations at half of their dimension 1: channels of a
convolution's input, tokens of a linear layer's. Confirmed against the outputs that its code gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from intsr.calib.models.modules import put_modules
from intsr.kernels.layer_algebra import run_layer, scaled_weight

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.passionsr.types import PassionSRAttention, PassionSRLayer, PassionSRQuantizers


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """R: halves away from zero."""
    return x.sign() * (x.abs() + 0.5).floor()


def passionsr_grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, z) in the dtype of the ends."""
    step = (high - low) / (2**bits - 1)
    return step, round_half_away(low / step)


def quantize_scalar_range(x: torch.Tensor, ends: Iterable[float], bits: int) -> torch.Tensor:
    """x on the grid of one range, same shape; D and z in float64, then cast to x's dtype."""
    low, high = (torch.tensor(float(end), dtype=torch.float64) for end in ends)
    step, first = (value.to(x.dtype) for value in passionsr_grid(low, high, bits))
    return ((round_half_away(x / step) - first).clamp(0, 2**bits - 1) + first) * step


def halves(length: int, pieces: int) -> list[slice]:
    """Return the slices that PassionSR's model cuts a dimension into."""
    return [slice(0, length)] if pieces == 1 else [slice(0, length // 2), slice(length // 2, length)]


def weight_codes(weight: torch.Tensor, quantizer: PassionSRLayer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(n, D) of each piece of the input channels, Q(W s) = n D: n of the piece's shape, D with trailing ones."""
    scaled = scaled_weight(weight, torch.tensor(quantizer.scale))
    rows, last, pieces = (-1, *[1] * (weight.ndim - 1)), 2**quantizer.weight_bits - 1, []
    ends = zip(torch.tensor(quantizer.weight_low), torch.tensor(quantizer.weight_high), strict=True)
    for cut, (low, high) in zip(halves(weight.shape[1], len(quantizer.weight_low)), ends, strict=True):
        step, first = passionsr_grid(low.reshape(rows), high.reshape(rows), quantizer.weight_bits)
        pieces.append(((round_half_away(scaled[:, cut] / step) - first).clamp(0, last) + first, step))
    return pieces


def quantized_bias(bias: torch.Tensor | None, quantizer: PassionSRLayer) -> torch.Tensor | None:
    """Q(b), (Cout,)."""
    if bias is None or quantizer.bias_range is None:
        return bias
    return quantize_scalar_range(bias, quantizer.bias_range, quantizer.weight_bits)


class PassionSRQuantizedLayer(nn.Module):
    """A Conv2d or Linear of the official model: (N, C, H, W), (N, tokens, C) or (N, C) float32, as the layer."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, quantizer: PassionSRLayer) -> None:
        super().__init__()
        self.layer, self.quantizer = layer, quantizer
        channels = (1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        self.register_buffer("scale", torch.tensor(quantizer.scale).reshape(channels))
        self.register_buffer("offset", torch.tensor(quantizer.offset).reshape(channels))
        weight = torch.cat([codes * step for codes, step in weight_codes(layer.weight, quantizer)], dim=1)
        self.register_buffer("quantized_weight", weight)
        self.register_buffer("quantized_bias", quantized_bias(layer.bias, quantizer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantizer = self.quantizer
        moved = (x - self.offset if quantizer.convolution else x + self.offset) / self.scale
        ranges: list[Any] = list(zip(quantizer.input_low, quantizer.input_high, strict=True))
        parts = [
            quantize_scalar_range(moved[:, cut], ends, quantizer.activation_bits)
            for cut, ends in zip(halves(moved.shape[1], len(ranges)), ranges, strict=True)
        ]
        y = run_layer(self.layer, torch.cat(parts, dim=1), self.quantized_weight, self.quantized_bias)
        if isinstance(self.layer, nn.Linear):
            return y + functional.linear(self.offset, self.layer.weight)
        shifts = self.offset.expand(1, -1, *x.shape[2:])
        return y + run_layer(self.layer, shifts, self.layer.weight, None)


class PassionSRAttentionProcessor:
    """diffusers' attention with the official model's four quantizers."""

    def __init__(self, quantizer: PassionSRAttention) -> None:
        self.quantizer = quantizer
        self.scale_qk, self.scale_vw = torch.tensor(quantizer.scale_qk), torch.tensor(quantizer.scale_vw)

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in inputs)
        query = self._quantize("query", query * self.scale_qk)
        key = self._quantize("key", key / self.scale_qk)
        weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        weights = self._quantize("weights", weights * self.scale_vw)
        mixed = weights @ self._quantize("value", value / self.scale_vw[:, None])
        output: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(-2))
        return output

    def _quantize(self, role: str, x: torch.Tensor) -> torch.Tensor:
        return quantize_scalar_range(x, self.quantizer.range_of(role), self.quantizer.activation_bits)


@torch.no_grad()
def passionsr_model(model: SRModel, quantizers: PassionSRQuantizers) -> SRModel:
    """Copy the model into one that computes what PassionSR's does with these quantizers; weights are shared."""
    copied = model.load()
    modules = copied.modules
    for site, quantizer in quantizers.layers.items():
        layer: Any = modules.get_submodule(site)
        put_modules(modules, {site: PassionSRQuantizedLayer(layer, quantizer)})
    for site, attention in quantizers.attentions.items():
        owner: Any = modules.get_submodule(site)
        owner.set_processor(PassionSRAttentionProcessor(attention))
    return copied
