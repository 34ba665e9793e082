"""Fold away what one step makes constant: exact rewrites of the three networks.

    time:        conv1(x) + W_t silu(t_emb)           ->  conv1 with a larger bias
    context:     softmax(q K(c)^T) V(c)               ->  K and V as constants
    x0:          g z + h e (`ModelSpec.x0_gains`)     ->  conv_out scaled by h, plus g z
    latents:     mean(quant_conv(h)) f, d / f         ->  quant_conv's mean half scaled by f, post_quant_conv by 1/f

Parameters keep diffusers' names below `unet.` and `vae.`: those names are the sites of a calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from intsr.calib.models.families.adcsr_networks import adcsr_networks
from intsr.calib.models.families.supported import unsupported
from intsr.calib.models.modules import copy_sharing_weights, through_blocks
from intsr.calib.models.spec import diffusion_spec
from intsr.errors import ExportError
from intsr.types import ModelSpec, PictureSpec

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel


@dataclass(frozen=True, slots=True)
class SpecializedNetwork:
    """A torch module whose only input is the tensor, and what specialization did to its weights."""

    # encoder, unet or decoder (contracts: `intsr.types.NetworkEntry`).
    name: str
    module: nn.Module
    spec: PictureSpec
    # Site -> what its weights were multiplied by: the scales of integer weights must follow.
    row_factors: Mapping[str, float]
    # Site -> those weights before, with the rows that are gone: codes are those of what calibration saw.
    plain_weights: Mapping[str, torch.Tensor]


class ConstantContextAttention(nn.Module):
    """Cross-attention to a context that never changes: (N, tokens, channels) -> the same.

    key, value: (1, heads, context tokens, head channels).
    """

    def __init__(self, attention: Any, context: torch.Tensor) -> None:
        super().__init__()
        if attention.group_norm is not None or attention.norm_q is not None or attention.norm_k is not None:
            raise ExportError("cross-attention", "norms inside", "SD 2.1's plain attention")
        self.to_q, self.to_out = attention.to_q, attention.to_out
        self.heads, self.softmax_scale = attention.heads, float(attention.scale)
        for name, projection in (("key", attention.to_k), ("value", attention.to_v)):
            constant = projection(context).unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()
            self.register_buffer(name, constant)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        query = self.to_q(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, self.key, self.value, scale=self.softmax_scale)
        output: torch.Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(-2))
        return output


class SpecializedEncoder(nn.Module):
    """x -> scaled posterior mean. factor: of quant_conv, as in the other two of the layer that they rescale."""

    def __init__(self, model: SRModel, factor: float) -> None:
        super().__init__()
        self.vae = nn.Module()
        self.vae.encoder = model.vae.encoder
        self.vae.quant_conv = _scaled_conv(model.vae.quant_conv, factor, halve=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.vae.quant_conv(self.vae.encoder(x))
        return latent


class SpecializedUNet(nn.Module):
    """latent -> x0, both scaled."""

    def __init__(self, model: SRModel, factor: float) -> None:
        super().__init__()
        spec = diffusion_spec(model.spec)
        # Anything but SD 2.1's structure would be lost silently in `forward`.
        problem = unsupported("unet", model.unet.config)
        if problem is not None:
            raise ExportError("unet/config.json", *problem)
        self.unet = copy_sharing_weights(model.unet)
        _fold_time(self.unet, spec.timestep)
        _fold_context(self.unet, model.context)
        self.unet.conv_out = _scaled_conv(self.unet.conv_out, factor)
        self.latent_gain = spec.x0_gains[0]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        hidden = through_blocks(self.unet, self.unet.conv_in(latent))
        scaled: torch.Tensor = self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))
        if self.latent_gain == 0:
            return scaled
        return (latent if self.latent_gain == 1 else latent * self.latent_gain) + scaled


class SpecializedDecoder(nn.Module):
    """x0, scaled -> picture."""

    def __init__(self, model: SRModel, factor: float) -> None:
        super().__init__()
        self.vae = nn.Module()
        self.vae.post_quant_conv = _scaled_conv(model.vae.post_quant_conv, factor, scale_bias=False)
        self.vae.decoder = model.vae.decoder

    def forward(self, denoised: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.vae.decoder(self.vae.post_quant_conv(denoised))
        return image


@torch.no_grad()
def specialize(name: str, model: SRModel) -> SpecializedNetwork:
    """Fold everything that the fixed timestep and context make constant in one network.

    Unchanged weights, and the VAE's unchanged modules, are those of `model`, of which only the part that the network
    belongs to is needed. AdcSR has nothing to fold. Raises ExportError where the UNet has a part that these rewrites
    do not cover.
    """
    spec = model.spec
    if not isinstance(spec, ModelSpec):
        return SpecializedNetwork(name, adcsr_networks(model.unet, model.vae)[name].eval(), spec, {}, {})
    latent_scaling_factor = spec.latent_scaling_factor
    makers: dict[str, tuple[type[nn.Module], str, float]] = {
        "encoder": (SpecializedEncoder, "vae.quant_conv", latent_scaling_factor),
        "unet": (SpecializedUNet, "unet.conv_out", spec.x0_gains[1]),
        "decoder": (SpecializedDecoder, "vae.post_quant_conv", 1 / latent_scaling_factor),
    }
    maker, site, factor = makers[name]
    module = maker(model, factor).eval().requires_grad_(False)
    part, _, layer = site.partition(".")
    plain_weight = getattr(getattr(model, part), layer).weight
    return SpecializedNetwork(name, module, spec, {site: factor}, {site: plain_weight})


def _scaled_conv(conv: nn.Conv2d, factor: float, halve: bool = False, scale_bias: bool = True) -> nn.Conv2d:
    """A copy with weights (and bias) times `factor`; `halve` keeps the first half of the output channels."""
    channels = conv.out_channels // 2 if halve else conv.out_channels
    scaled = copy_sharing_weights(conv)
    scaled.out_channels = channels
    scaled.weight = nn.Parameter(conv.weight[:channels] * factor, requires_grad=False)
    if conv.bias is not None:
        scaled.bias = nn.Parameter(conv.bias[:channels] * (factor if scale_bias else 1.0), requires_grad=False)
    return scaled


def _fold_time(unet: Any, timestep: int) -> None:
    """conv1.bias += time_emb_proj(silu(t_emb)), then the time network is gone."""
    from diffusers.models.resnet import ResnetBlock2D

    steps = torch.tensor([timestep])
    embedding = unet.time_embedding(unet.time_proj(steps).to(unet.conv_in.weight.dtype))
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
            addition = module.time_emb_proj(module.nonlinearity(embedding))[0]
            module.conv1.bias = nn.Parameter(module.conv1.bias + addition, requires_grad=False)
            module.time_emb_proj = None
    unet.time_embedding = unet.time_proj = None


def _fold_context(unet: Any, context: torch.Tensor) -> None:
    from diffusers.models.attention import BasicTransformerBlock

    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            if module.attn2 is None or module.norm_type != "layer_norm":
                raise ExportError("unet", f"a transformer block of type {module.norm_type}", "layer_norm with attn2")
            module.attn2 = ConstantContextAttention(module.attn2, context)
