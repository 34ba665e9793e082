"""Wan's VAE as functions of one chunk of frames: (x, memory...) -> (y, memory...).

    latents       (mean(quant_conv(h)) - m) / s       rows of quant_conv's mean half / s, bias minus m first
    and back      post_quant_conv(d s + m)            columns of post_quant_conv times s, bias plus W m

The first chunk is given no memory: one frame, one of latents. All others are given what the one before has returned:
four frames, or a multiple, are a fourth of them in latents. Parameters keep diffusers' names below `vae.`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from intsr.calib.models.modules import copy_sharing_weights
from intsr.calib.models.video import VideoModel
from intsr.export.fold.video.causal import (
    Memory,
    convolve,
    middle,
    plain_convolution,
    plain_convolutions,
    resample,
    residual,
)
from intsr.export.fold.video.layers import affine
from intsr.export.fold.video.types import SpecializedVideoNetwork


class SpecializedVideoEncoder(nn.Module):
    """Frames (1, 3, 1 or 4n, H, W) in [-1, 1], memory... -> latents (1, C, 1 or n, h, w), memory...

    The latents are the posterior's mean, minus the model's own mean, over its deviation.
    """

    def __init__(self, encoder: Any, quant_conv: nn.Conv3d) -> None:
        super().__init__()
        self.vae = nn.Module()
        self.vae.encoder, self.vae.quant_conv = encoder, quant_conv

    def forward(self, x: torch.Tensor, *before: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoder, memory = self.vae.encoder, Memory(before)
        hidden = convolve(encoder.conv_in, x, memory)
        for layer in encoder.down_blocks:
            # A residual block has two convolutions, a change of size has none of that name.
            hidden = (residual if hasattr(layer, "conv2") else resample)(layer, hidden, memory)
        hidden = middle(encoder.mid_block, hidden, memory)
        hidden = convolve(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(hidden)), memory)
        return self.vae.quant_conv(hidden), *memory.after


class SpecializedVideoDecoder(nn.Module):
    """Latents (1, C, n, h, w) as the encoder's, memory... -> frames (1, 3, 1 or 4n, H, W), memory...

    The frames are nominally in [-1, 1], and not clamped.
    """

    def __init__(self, decoder: Any, post_quant_conv: nn.Conv3d) -> None:
        super().__init__()
        self.vae = nn.Module()
        self.vae.post_quant_conv, self.vae.decoder = post_quant_conv, decoder

    def forward(self, denoised: torch.Tensor, *before: torch.Tensor) -> tuple[torch.Tensor, ...]:
        decoder, memory = self.vae.decoder, Memory(before)
        hidden = convolve(decoder.conv_in, self.vae.post_quant_conv(denoised), memory)
        hidden = middle(decoder.mid_block, hidden, memory)
        for block in decoder.up_blocks:
            for layer in block.resnets:
                hidden = residual(layer, hidden, memory)
            for sampler in block.upsamplers or ():
                hidden = resample(sampler, hidden, memory)
        hidden = convolve(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(hidden)), memory)
        return hidden, *memory.after


@torch.no_grad()
def specialize_encoder(model: VideoModel) -> SpecializedVideoNetwork:
    """Unchanged weights are those of `model`, of which only the VAE is needed."""
    encoder = copy_sharing_weights(model.vae.encoder)
    plain_convolutions(encoder)
    quant_conv = plain_convolution(model.vae.quant_conv)
    channels = quant_conv.out_channels = quant_conv.out_channels // 2
    quant_conv.weight, quant_conv.bias = (
        nn.Parameter(values[:channels], requires_grad=False) for values in (quant_conv.weight, quant_conv.bias)
    )
    mean, deviation = _latent_statistics(model, quant_conv.weight.dtype)
    quant_conv = affine(quant_conv, rows=1 / deviation, offset=-mean / deviation)
    module = SpecializedVideoEncoder(encoder, quant_conv).eval().requires_grad_(False)
    return SpecializedVideoNetwork("encoder", module, model.spec, {"vae.quant_conv": 1 / deviation})


@torch.no_grad()
def specialize_decoder(model: VideoModel) -> SpecializedVideoNetwork:
    """Unchanged weights are those of `model`, of which only the VAE is needed."""
    decoder = copy_sharing_weights(model.vae.decoder)
    plain_convolutions(decoder)
    post_quant_conv = plain_convolution(model.vae.post_quant_conv)
    mean, deviation = _latent_statistics(model, post_quant_conv.weight.dtype)
    post_quant_conv = affine(post_quant_conv, columns=deviation, shift=mean)
    module = SpecializedVideoDecoder(decoder, post_quant_conv).eval().requires_grad_(False)
    columns = {"vae.post_quant_conv": deviation}
    return SpecializedVideoNetwork("decoder", module, model.spec, column_factors=columns)


def _latent_statistics(model: VideoModel, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(model.spec.latents_mean, dtype=dtype), torch.tensor(model.spec.latents_std, dtype=dtype)
