"""The official PassionSR forward pass, to the last rounding, from the model's own modules.

    quantizer    D = (max - min) / (2**b - 1), z = R(min / D), y = (clamp(R(x / D) - z, 0, 2**b - 1) + z) D
    convolution  conv(Q((x - o) / s), Q(W s), Q(b)) + conv0(o 1, W)
    linear       lin(Q((x + o) / s), Q(W s), Q(b)) + W o        (a sign slip: in full precision W x + b + 2 W o)
    attention    softmax(Q(q s_qk) Q(k / s_qk)^T / sqrt(d)),  Q(weights s_vw) Q(v / s_vw)

R rounds half away from zero. Weights are split at Cin // 2, activations at half of their dimension 1: channels of a
convolution's input, tokens of a linear layer's. Source: METHODS section 2, confirmed against the official outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from intsr.calib.calibration import PARTS
from intsr.calib.learn.quantized_layer import put_layers

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.passionsr.types import OfficialAttention, OfficialLayer


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """R: halves away from zero."""
    return x.sign() * (x.abs() + 0.5).floor()


def official_grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, z) in the dtype of the ends."""
    step = (high - low) / (2**bits - 1)
    return step, round_half_away(low / step)


def quantize_scalar_range(x: torch.Tensor, ends: Iterable[float], bits: int) -> torch.Tensor:
    """x on the grid of one range, same shape; D and z in float64, then cast to x's dtype."""
    low, high = (torch.tensor(float(end), dtype=torch.float64) for end in ends)
    step, first = (value.to(x.dtype) for value in official_grid(low, high, bits))
    return ((round_half_away(x / step) - first).clamp(0, 2**bits - 1) + first) * step


def halves(length: int, pieces: int) -> list[slice]:
    """Where the official model cuts a dimension."""
    return [slice(0, length)] if pieces == 1 else [slice(0, length // 2), slice(length // 2, length)]


def weight_codes(weight: torch.Tensor, official: OfficialLayer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(n, D) of each piece of the input channels, Q(W s) = n D: n of the piece's shape, D with trailing ones."""
    scaled = weight * torch.tensor(official.scale).reshape(1, -1, *[1] * (weight.ndim - 2))
    rows, last, pieces = (-1, *[1] * (weight.ndim - 1)), 2**official.weight_bits - 1, []
    ends = zip(torch.tensor(official.weight_low), torch.tensor(official.weight_high), strict=True)
    for cut, (low, high) in zip(halves(weight.shape[1], len(official.weight_low)), ends, strict=True):
        step, first = official_grid(low.reshape(rows), high.reshape(rows), official.weight_bits)
        pieces.append(((round_half_away(scaled[:, cut] / step) - first).clamp(0, last) + first, step))
    return pieces


def quantized_bias(bias: torch.Tensor | None, official: OfficialLayer) -> torch.Tensor | None:
    """Q(b), (Cout,)."""
    if bias is None or official.bias_range is None:
        return bias
    return quantize_scalar_range(bias, official.bias_range, official.weight_bits)


class OfficialQuantizedLayer(nn.Module):
    """A Conv2d or Linear of the official model: (N, C, H, W), (N, tokens, C) or (N, C) float32, as the layer."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, official: OfficialLayer) -> None:
        super().__init__()
        self.layer, self.official = layer, official
        channels = (1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        self.register_buffer("scale", torch.tensor(official.scale).reshape(channels))
        self.register_buffer("offset", torch.tensor(official.offset).reshape(channels))
        weight = torch.cat([codes * step for codes, step in weight_codes(layer.weight, official)], dim=1)
        self.register_buffer("quantized_weight", weight)
        self.register_buffer("quantized_bias", quantized_bias(layer.bias, official))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        official = self.official
        moved = (x - self.offset if official.convolution else x + self.offset) / self.scale
        ranges: list[Any] = list(zip(official.input_low, official.input_high, strict=True))
        parts = [
            quantize_scalar_range(moved[:, cut], ends, official.activation_bits)
            for cut, ends in zip(halves(moved.shape[1], len(ranges)), ranges, strict=True)
        ]
        y = self._apply(torch.cat(parts, dim=1), self.quantized_weight, self.quantized_bias)
        if isinstance(self.layer, nn.Linear):
            return y + functional.linear(self.offset, self.layer.weight)
        shifts = self.offset.expand(1, -1, *x.shape[2:])
        return y + self._apply(shifts, self.layer.weight, None)

    def _apply(self, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class OfficialAttentionProcessor:
    """diffusers' attention with the official model's four quantizers."""

    def __init__(self, official: OfficialAttention) -> None:
        self.official = official
        self.scale_qk, self.scale_vw = torch.tensor(official.scale_qk), torch.tensor(official.scale_vw)

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
        return quantize_scalar_range(x, self.official.range_of(role), self.official.activation_bits)


@torch.no_grad()
def official_model(
    model: SRModel, layers: Mapping[str, OfficialLayer], attentions: Mapping[str, OfficialAttention]
) -> SRModel:
    """A copy of the model that computes what the official one does with these quantizers; weights are shared."""
    networks = {}
    for part in PARTS:
        network: Any = getattr(model, part)
        network = copy.deepcopy(network, {id(p): p for p in network.parameters()})
        own = {site.removeprefix(f"{part}."): layer for site, layer in layers.items() if site.startswith(f"{part}.")}
        put_layers(network, {n: OfficialQuantizedLayer(network.get_submodule(n), layer) for n, layer in own.items()})
        for site, attention in attentions.items():
            if site.startswith(f"{part}."):
                network.get_submodule(site.removeprefix(f"{part}.")).set_processor(
                    OfficialAttentionProcessor(attention)
                )
        networks[part] = network.eval()
    return replace(model, **networks)
