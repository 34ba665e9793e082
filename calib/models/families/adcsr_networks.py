"""AdcSR's two networks as torch modules, of diffusers' own blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from intsr.calib.models.families.adcsr import (
    DECODER_GROUPS,
    HEAD_CHANNELS,
    PICTURE_CHANNELS,
    UNSHUFFLE,
    groups_of,
)
from intsr.calib.models.modules import through_blocks


def make_unet(config: Mapping[str, Any]) -> nn.Module:
    """diffusers' UNet without a timestep and cross-attention, other GroupNorms, its last convolution as `features`.

    config: of `AdcSRArchitecture.networks`.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    attention, widths = config["attention"], config["widths"]
    unet: Any = UNet2DConditionModel(
        in_channels=PICTURE_CHANNELS * UNSHUFFLE**2,
        out_channels=config["features"],
        down_block_types=[f"{'CrossAttn' * has}DownBlock2D" for has in attention],
        up_block_types=[f"{'CrossAttn' * has}UpBlock2D" for has in reversed(attention)],
        block_out_channels=list(widths),
        layers_per_block=config["layers"],
        attention_head_dim=[width // HEAD_CHANNELS for width in widths],  # diffusers' name for the number of heads
        use_linear_projection=True,
        norm_num_groups=1,
    )
    unet.time_proj = unet.time_embedding = None
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.time_emb_proj = None
        elif isinstance(module, BasicTransformerBlock):
            module.attn2 = module.norm2 = None
    for norm in [module for module in unet.modules() if isinstance(module, nn.GroupNorm)]:
        norm.num_groups = groups_of(norm.num_channels)
    unet.features = nn.Module()
    unet.features.conv_out = unet.conv_out
    del unet.conv_out
    network: nn.Module = unet
    return network


def make_decoder(config: Mapping[str, Any]) -> nn.Module:
    """A module whose `decoder` is diffusers' without its first convolution. config: as of `make_unet`."""
    part = nn.Module()
    part.decoder = whole_decoder(config)
    del part.decoder.conv_in
    return part


def whole_decoder(config: Mapping[str, Any]) -> nn.Module:
    """diffusers' decoder as it was before AdcSR was trained: its file's."""
    from diffusers.models.autoencoders.vae import Decoder

    widths = list(config["widths"])
    decoder: nn.Module = Decoder(
        in_channels=4,
        out_channels=PICTURE_CHANNELS,
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=DECODER_GROUPS,
    )
    return decoder


class AdcSRUNet(nn.Module):
    """Low resolution x (N, 3, H, W) in [-1, 1] -> features (N, C, H/2, W/2)."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = through_blocks(self.unet, self.unet.conv_in(pixel_unshuffle(x.contiguous())))
        features: torch.Tensor = self.unet.features.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))
        return features


class AdcSRDecoder(nn.Module):
    """Features (N, C, H/2, W/2) -> picture (N, 3, 4H, 4W), nominally in [-1, 1], not clamped."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        decoder = self.vae.decoder
        hidden = decoder.mid_block(features.contiguous())
        for block in decoder.up_blocks:
            hidden = block(hidden)
        image: torch.Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
        return image


def pixel_unshuffle(x: torch.Tensor) -> torch.Tensor:
    """torch's PixelUnshuffle(2), (N, C, H, W) -> (N, 4C, H/2, W/2), of operations that every target has."""
    count, channels, height, width = x.shape
    split = x.reshape(count, channels, height // UNSHUFFLE, UNSHUFFLE, width // UNSHUFFLE, UNSHUFFLE)
    moved = split.permute(0, 1, 3, 5, 2, 4)
    return moved.reshape(count, channels * UNSHUFFLE**2, height // UNSHUFFLE, width // UNSHUFFLE)


def adcsr_networks(unet: Any, vae: Any) -> dict[str, nn.Module]:
    """unet and decoder, of the parts that are there (else None), sharing their weights."""
    made: dict[str, nn.Module] = {}
    if unet is not None:
        made["unet"] = AdcSRUNet(unet)
    if vae is not None:
        made["decoder"] = AdcSRDecoder(vae)
    return made
