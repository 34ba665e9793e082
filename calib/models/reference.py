"""The model as its authors run it, in full precision: torch modules, nothing folded, of a video model too.

Everything else (specialized, folded, exported, compiled) is compared with these. Inputs are made contiguous: torch's
GroupNorm of a channels-last tensor takes E[x^2] - E[x]^2, which on a flat picture is 50 dB from the truth, not 130.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from intsr.calib.models.families.adcsr_networks import adcsr_networks
from intsr.calib.models.spec import diffusion_spec
from intsr.types import ModelSpec

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.models.video import VideoModel


class ReferenceEncoder(nn.Module):
    """x (N, 3, H, W) in [-1, 1] -> posterior mean times the latent scaling factor (N, C, h, w)."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.vae, self.latent_scaling_factor = model.vae, diffusion_spec(model.spec).latent_scaling_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.vae.encode(x.contiguous()).latent_dist.mode() * self.latent_scaling_factor
        return latent


class ReferenceUNet(nn.Module):
    """z (N, C, h, w) -> x0 by the model's rule, of z and e(z, t, context): `ModelSpec.x0_rule`."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        spec = diffusion_spec(model.spec)
        self.unet, self.timestep = model.unet, spec.timestep
        self.x0_rule, self.alpha_bar = spec.x0_rule, spec.alpha_bar
        self.register_buffer("context", model.context)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        latent, context = latent.contiguous(), self.context.expand(latent.shape[0], -1, -1)
        predicted: torch.Tensor = self.unet(latent, self.timestep, encoder_hidden_states=context).sample
        signal, noise = math.sqrt(self.alpha_bar), math.sqrt(1 - self.alpha_bar)
        if self.x0_rule == "epsilon":
            return (latent - noise * predicted) / signal
        if self.x0_rule == "v":
            return signal * latent - noise * predicted
        return latent - predicted if self.x0_rule == "difference" else predicted


class ReferenceDecoder(nn.Module):
    """x0 (N, C, h, w), scaled -> picture (N, 3, H, W), nominally in [-1, 1], not clamped."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.vae, self.latent_scaling_factor = model.vae, diffusion_spec(model.spec).latent_scaling_factor

    def forward(self, denoised: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.vae.decode(denoised.contiguous() / self.latent_scaling_factor).sample
        return image


def reference_networks(model: SRModel) -> dict[str, nn.Module]:
    """encoder, unet, decoder, or those of them that the family has, in this order; sharing the model's weights."""
    if not isinstance(model.spec, ModelSpec):
        return adcsr_networks(model.unet, model.vae)
    return {"encoder": ReferenceEncoder(model), "unet": ReferenceUNet(model), "decoder": ReferenceDecoder(model)}


class _VideoNetwork(nn.Module):
    """A part of a video model with what its latents are normalized by."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.transformer, self.vae, self.spec = model.transformer, model.vae, model.spec
        self.register_buffer("context", model.context)
        for name, values in (("mean", self.spec.latents_mean), ("deviation", self.spec.latents_std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1, 1))


class ReferenceVideoEncoder(_VideoNetwork):
    """Frames (1, 3, F, H, W) in [-1, 1] -> (posterior mean - mean) / deviation, (1, C, f, h, w)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = (self.vae.encode(x).latent_dist.mode() - self.mean) / self.deviation
        return latents


class ReferenceVideoTransformer(_VideoNetwork):
    """z (N, C, f, h, w) -> x0 = z - sigma v(z, t, context)."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        count = len(latents)
        timestep = torch.full((count,), self.spec.timestep, device=latents.device)
        velocity = self.transformer(latents, timestep, self.context.expand(count, -1, -1)).sample
        denoised: torch.Tensor = latents - self.spec.sigma * velocity
        return denoised


class ReferenceVideoDecoder(_VideoNetwork):
    """x0 (1, C, f, h, w) -> frames (1, 3, F, H, W), clamped to [-1, 1]."""

    def forward(self, denoised: torch.Tensor) -> torch.Tensor:
        frames: torch.Tensor = self.vae.decode(denoised * self.deviation + self.mean).sample
        return frames


def video_reference_networks(model: VideoModel) -> dict[str, nn.Module]:
    """encoder, transformer, decoder of whole chunks, sharing the model's weights."""
    return {
        "encoder": ReferenceVideoEncoder(model),
        "transformer": ReferenceVideoTransformer(model),
        "decoder": ReferenceVideoDecoder(model),
    }
