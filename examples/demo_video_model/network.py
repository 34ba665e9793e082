"""The demonstration video model: Wan 2.1's classes in a small size, and where its weights begin.

The VAE begins as a linear one: the encoder as averages of 2x2 pixels and sums and differences of two frames,
twice, the decoder as bilinear interpolation of them. A channel of every layer is constant, so that the norms, which
divide by all channels' length, leave brightness nearly as it is; a channel and its negative behind a SiLU are linear
again, silu(a) - silu(-a) = a. All blocks add nothing at first, and so does the transformer, whose heads each begin
with one neighbour to look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from safetensors.torch import save_file

TIMESTEP, SIGMA = 500, 0.5
CONTEXT_SHAPE = (1, 8, 64)
LATENT_CHANNELS = 48
VAE: Mapping[str, Any] = {
    "base_dim": 16,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "scale_factor_spatial": 4,
}
TRANSFORMER: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "text_dim": CONTEXT_SHAPE[-1],
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 3,
    "cross_attn_norm": True,
}
# What each head looks at first, in frames, rows and columns of patches; how much of a query does not depend on what
# it is at, beside 0.6 that does; and what query and key are multiplied by.
NEIGHBOURS = ((0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0))
BIAS, SHARPNESS = 2.0, 2.0
# Of the constant channel, the last of every layer; pictures are in [-1, 1].
CONSTANT = 4.0
# Haar's four of 2x2 pixels: mean, and the halves' differences across, down, and both.
HAAR = torch.tensor([[[1.0, 1], [1, 1]], [[-1, 1], [-1, 1]], [[-1, -1], [1, 1]], [[1, -1], [-1, 1]]]) / 4
# What nearest enlargement leaves becomes bilinear interpolation by it.
BILINEAR = torch.outer(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.25, 0.5, 0.25]))
# The latents' first channels: a block's colours; what varies within it; both of that again a level down; then
# differences in time: of two frames, of two pairs, and of the two pairs' own.
COLOURS = 3
DIFFERENCES = slice(12, 15), slice(21, 24), slice(24, 27), slice(27, 30)
LINEAR_LATENTS = 30


class DemoVideoModel(torch.nn.Module):
    """Encoder, transformer at one timestep, decoder: (N, 3, 4n + 1, H, W) float32 in [-1, 1] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKLWan(**VAE, latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] * LATENT_CHANNELS)
        self.transformer = WanTransformer3DModel(**TRANSFORMER)
        self.context = torch.nn.Parameter(torch.randn(CONTEXT_SHAPE) * 0.5)
        # Of every latent channel, measured when the autoencoder is done.
        self.register_buffer("mean", torch.zeros(1, LATENT_CHANNELS, 1, 1, 1))
        self.register_buffer("deviation", torch.ones(1, LATENT_CHANNELS, 1, 1, 1))
        with torch.no_grad():
            begin_encoder(self.vae)
            begin_decoder(self.vae)
            begin_transformer(self.transformer)
        for layer in self.vae.modules():
            if isinstance(layer, torch.nn.Conv3d):
                layer.to(memory_format=torch.channels_last_3d)
            elif isinstance(layer, WanResample):
                layer.forward = partial(_resample_whole_clip, layer)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.vae.quant_conv(self.vae.encoder(x)).chunk(2, 1)[0]
        return (latent - self.mean) / self.deviation

    def restore(self, latent: torch.Tensor) -> torch.Tensor:
        """x0 = z - sigma v."""
        count = latent.shape[0]
        timestep = torch.full((count,), TIMESTEP)
        context = self.context.expand(count, -1, -1)
        velocity = self.transformer(latent, timestep, context, return_dict=False)[0]
        restored: torch.Tensor = latent - SIGMA * velocity
        return restored

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Without diffusers' clamp, which has no gradient outside."""
        frames: torch.Tensor = self.vae.decoder(self.vae.post_quant_conv(latent * self.deviation + self.mean))
        return frames

    def forward(self, x: torch.Tensor, with_transformer: bool = True) -> torch.Tensor:
        latent = self.encode(x)
        return self.decode(self.restore(latent) if with_transformer else latent)


def _resample_whole_clip(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """WanResample over (N, C, frames, H, W) at once, the first frame by itself: what diffusers' gives chunk by chunk.

    A step of training takes two thirds of the time.
    """
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        x = torch.cat((x[:, :, :1], pairs), 2)
    x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat((x[:, :, :1], layer.time_conv(x)), 2)
    return x


def begin_encoder(vae: Any) -> None:
    """Haar's coefficients of the colours; see the top."""
    encoder = vae.encoder
    _begin_blocks(encoder)
    _, down_32, residual_32, down_64, residual_64 = encoder.down_blocks
    _set(encoder.conv_in, _eye(COLOURS), 0)
    # Colours' four coefficients; nothing where two frames' difference will be.
    _set(down_32.resample[1], {(3 * k + c, c): HAAR[k] for k in range(4) for c in range(COLOURS)}, 12)
    _clear(down_32.resample[1], DIFFERENCES[0])
    _set_halving(down_32.time_conv, [(range(15), range(15), 1), (range(12, 15), range(COLOURS), -1)])
    _set(residual_32.conv_shortcut, _eye(15), 0)
    wavelets = {(3 * k + c, c): HAAR[k] for k in range(4) for c in range(COLOURS)}
    means = {(channel + 9, channel): HAAR[0] for channel in range(3, 15)}
    _set(down_64.resample[1], wavelets | means, 0)
    for rows in DIFFERENCES[2:]:
        _clear(down_64.resample[1], rows)
    halves = [(range(30), range(30), 1), (range(24, 27), range(COLOURS), -1), (range(27, 30), range(21, 24), -1)]
    _set_halving(down_64.time_conv, halves)
    negatives = {(32 + i, i): -1.0 for i in range(LINEAR_LATENTS)}
    _set(residual_64.conv_shortcut, _eye(LINEAR_LATENTS) | negatives, 0)
    pairs = {(i, i): 1.0 for i in range(LINEAR_LATENTS)} | {(i, 32 + i): -1.0 for i in range(LINEAR_LATENTS)}
    _set(encoder.conv_out, pairs, None)
    _set(vae.quant_conv, _eye(2 * LATENT_CHANNELS), None)


def begin_decoder(vae: Any) -> None:
    """Bilinear interpolation of the colours; see the top."""
    decoder = vae.decoder
    _begin_blocks(decoder)
    _set(vae.post_quant_conv, _eye(LATENT_CHANNELS), None)
    _set(decoder.conv_in, _eye(LINEAR_LATENTS), 0)
    first, second = (block.upsamplers[0] for block in decoder.up_blocks[:2])
    _set_doubling(first.time_conv, [(range(COLOURS), range(24, 27)), (range(21, 24), range(27, 30))])
    colours = {(c, c): BILINEAR for c in range(COLOURS)}
    _set(first.resample[1], colours | {(3 + c, 21 + c): BILINEAR for c in range(COLOURS)}, 0)
    _set_doubling(second.time_conv, [(range(COLOURS), range(3, 6))])
    _set(second.resample[1], colours | {(3 + c, c): -BILINEAR for c in range(COLOURS)}, 0)
    _set(decoder.conv_out, {(c, c): 1.0 for c in range(3)} | {(c, 3 + c): -1.0 for c in range(3)}, None)


def begin_transformer(transformer: Any) -> None:
    """No modulation yet, nothing comes out, and each head looks at one neighbour."""
    embedder = transformer.condition_embedder
    for parameter in (*embedder.time_proj.parameters(), *transformer.proj_out.parameters()):
        parameter.zero_()
    transformer.scale_shift_table.zero_()
    for block in transformer.blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, (2, 5)] = 1.0
        _look_at_neighbours(block.attn1, transformer.rope)


def _look_at_neighbours(attention: Any, rope: Any) -> None:
    """One neighbour a head, by the biases alone.

    Query and key are turned by their places, so that q = turn(offset) k makes their product largest where the key is
    `offset` away. Most of the length goes to the fastest pair of each axis, the rest to the next one of space.
    """
    axes, speeds, amounts = [], [], []
    for axis, channels in enumerate((rope.t_dim, rope.h_dim, rope.w_dim)):
        for pair in range(channels // 2):
            axes.append(axis)
            speeds.append(10000.0 ** (-2 * pair / channels))
            amounts.append((2.0, 1.4 * (axis > 0))[pair] if pair < 2 else 0.0)
    turns = torch.tensor(NEIGHBOURS, dtype=torch.float32)[:, axes] * torch.tensor(speeds)
    lengths = BIAS * torch.tensor(amounts)
    query = torch.stack((lengths * turns.cos(), lengths * turns.sin()), -1)
    attention.to_q.bias.copy_(query.flatten())
    attention.to_k.bias.copy_(torch.stack((lengths, torch.zeros_like(lengths)), -1).flatten().repeat(len(NEIGHBOURS)))
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(SHARPNESS)


def _begin_blocks(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
        elif isinstance(module, WanAttentionBlock):
            module.proj.weight.zero_()
            module.proj.bias.zero_()
        elif isinstance(module, WanRMS_norm):
            # Where the constant is most of the length, the norm's output is its input, and 1 for the constant.
            module.gamma.fill_(CONSTANT / module.scale)
            module.gamma[-1] = 1 / module.scale


def _eye(channels: int) -> dict[tuple[int, int], float]:
    return {(channel, channel): 1.0 for channel in range(channels)}


def _set(layer: Any, taps: Mapping[tuple[int, int], Any], spare: int | None) -> None:
    """Rows of a convolution that are to be linear. taps: (to, from) -> the middle of the last frame, or (k, k) taps.

    spare: not None: the last channel is the constant one.
    """
    weight, bias = layer.weight, layer.bias
    for row in {row for row, _ in taps}:
        weight[row], bias[row] = 0.0, 0.0
    for (row, column), tap in taps.items():
        kernel = weight[row, column] if weight.ndim == 4 else weight[row, column, -1]
        if isinstance(tap, float):
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = tap
        else:
            kernel[: tap.shape[0], : tap.shape[1]] = tap
    if spare is not None:
        weight[-1], bias[-1] = 0.0, CONSTANT


def _clear(layer: Any, rows: slice) -> None:
    layer.weight[rows], layer.bias[rows] = 0.0, 0.0


def _set_halving(layer: Any, parts: list[tuple[range, range, int]]) -> None:
    """(to, from, sign): half the later frame and sign times half the earlier one; the rest passes as their mean."""
    weight, channels = layer.weight, layer.weight.shape[0]
    weight.zero_()
    layer.bias.zero_()
    for channel in range(channels):
        weight[channel, channel, 1:, 0, 0] = 0.5
    for to, of, sign in parts:
        for row, column in zip(to, of, strict=True):
            if sign < 0:
                # The difference of what the mean is of; nothing of itself, which is nothing before.
                weight[row] = 0.0 if row == column else weight[row]
                weight[row, column, 1, 0, 0], weight[row, column, 2, 0, 0] = -0.5, 0.5


def _set_doubling(layer: Any, parts: list[tuple[range, range]]) -> None:
    """(to, of the difference): the earlier frame is the mean minus the difference, the later one plus it."""
    weight, channels = layer.weight, layer.weight.shape[1]
    weight.zero_()
    layer.bias.zero_()
    for channel in range(channels):
        weight[channel, channel, -1] = weight[channels + channel, channel, -1] = 1.0
    for to, of in parts:
        for row, column in zip(to, of, strict=True):
            weight[row, column, -1], weight[channels + row, column, -1] = -1.0, 1.0


def export_model(model: DemoVideoModel, folder: Path) -> None:
    """diffusers' folder format in fp16, plus what one-step inference needs beside it."""
    half = DemoVideoModel()
    half.load_state_dict(model.state_dict())
    mean, deviation = ([round(v, 5) for v in values.flatten().tolist()] for values in (model.mean, model.deviation))
    half.vae.register_to_config(latents_mean=mean, latents_std=deviation)
    half.half()
    half.vae.save_pretrained(folder / "vae")
    half.transformer.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    save_file({"context": model.context.detach().float().contiguous()}, folder / "context.safetensors")
    settings = {
        "schema_version": 1,
        "name": "demo-video",
        "timestep": TIMESTEP,
        "upscale_factor": 4,
        "resize_filter": "bicubic",
        "context": "context.safetensors",
        "licence": "Apache-2.0; trained on the Kodak suite (unrestricted), CC0 pictures of scikit-image, and "
        "photographs of lomiri-wallpapers (CC0 and CC BY 4.0, authors in examples/demo_model/README.md)",
    }
    (folder / "intsr_model.json").write_text(json.dumps(settings, indent=2) + "\n")
