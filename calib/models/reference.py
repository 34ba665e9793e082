"""The model as its authors run it, in full precision: three torch modules, nothing folded.

Everything else (specialized, folded, exported, compiled) is compared with these. Inputs are made contiguous: torch's
GroupNorm of a channels-last tensor takes E[x^2] - E[x]^2, which on a flat picture is 50 dB from the truth, not 130.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel


class ReferenceEncoder(nn.Module):
    """x (N, 3, H, W) in [-1, 1] -> posterior mean times the latent scaling factor (N, C, h, w)."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.vae, self.latent_scaling_factor = model.vae, model.spec.latent_scaling_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.vae.encode(x.contiguous()).latent_dist.mode() * self.latent_scaling_factor
        return latent


class ReferenceUNet(nn.Module):
    """z (N, C, h, w) -> x0 = (z - sqrt(1 - a) e(z, t, context)) / sqrt(a)."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.unet, self.timestep = model.unet, model.spec.timestep
        self.alpha_bar = model.spec.alpha_bar
        self.register_buffer("context", model.context)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        latent, context = latent.contiguous(), self.context.expand(latent.shape[0], -1, -1)
        error = self.unet(latent, self.timestep, encoder_hidden_states=context).sample
        denoised: torch.Tensor = (latent - math.sqrt(1 - self.alpha_bar) * error) / math.sqrt(self.alpha_bar)
        return denoised


class ReferenceDecoder(nn.Module):
    """x0 (N, C, h, w), scaled -> picture (N, 3, H, W), nominally in [-1, 1], not clamped."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.vae, self.latent_scaling_factor = model.vae, model.spec.latent_scaling_factor

    def forward(self, denoised: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.vae.decode(denoised.contiguous() / self.latent_scaling_factor).sample
        return image


def reference_networks(model: SRModel) -> dict[str, nn.Module]:
    """encoder, unet, decoder, sharing the model's weights."""
    return {"encoder": ReferenceEncoder(model), "unet": ReferenceUNet(model), "decoder": ReferenceDecoder(model)}
