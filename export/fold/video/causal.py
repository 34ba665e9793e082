"""Causal layers over chunks of frames: what a layer has to remember goes in and comes out as tensors.

A causal convolution of three frames reads two that were before. diffusers keeps them in a list of its own, as
nothing, as one frame, two, or a word; here they are always as many frames, zeros where there were none, so that a
chunk is a function of tensors. x: (1, C, frames, H, W). docs/theory.md, "Chunks of frames".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Frames that a causal convolution remembers, and the one that halves the number of frames.
REMEMBERED, REMEMBERED_HALVING = 2, 1


class Memory:
    """What a chunk's layers read of the chunk before, in the order in which they run, and leave to the next."""

    def __init__(self, before: Sequence[torch.Tensor]) -> None:
        """before: what the chunk before has left; nothing at the film's start."""
        self.is_start = not before
        self._before = iter(before)
        self.after: list[torch.Tensor] = []

    def extend(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        """Return x with `frames` remembered ones in front."""
        start = (0, 0, 0, 0, frames, 0)
        whole = functional.pad(x, start) if self.is_start else torch.cat((next(self._before), x), 2)
        self.after.append(whole[:, :, -frames:])
        return whole


def plain_convolutions(network: Any) -> None:
    """Put a Conv3d that pads height and width alone in the place of each of diffusers' causal ones."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WanCausalConv3d):
                setattr(parent, name, plain_convolution(child))


def plain_convolution(causal: Any) -> nn.Conv3d:
    """The same weights; the frames in front are the caller's to bring."""
    height, width = causal._padding[2], causal._padding[0]
    with torch.device("meta"):
        plain = nn.Conv3d(
            causal.in_channels,
            causal.out_channels,
            causal.kernel_size,
            stride=causal.stride,
            padding=(0, height, width),
        )
    plain.weight, plain.bias = causal.weight, causal.bias
    return plain


def convolve(layer: nn.Conv3d, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    """A causal convolution of three frames."""
    result: torch.Tensor = layer(memory.extend(x, REMEMBERED))
    return result


def residual(block: Any, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    """norm, SiLU, convolution, twice, beside a shortcut."""
    hidden = convolve(block.conv1, block.nonlinearity(block.norm1(x)), memory)
    hidden = convolve(block.conv2, block.nonlinearity(block.norm2(hidden)), memory)
    result: torch.Tensor = hidden + block.conv_shortcut(x)
    return result


def middle(block: Any, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    """A residual block, and attention and another one behind it."""
    x = residual(block.resnets[0], x, memory)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = residual(resnet, attend(attention, x), memory)
    return x


def attend(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Attention of one head among the pixels of each frame."""
    frames = x[0].transpose(0, 1)
    count, channels, height, width = frames.shape
    projected = block.to_qkv(block.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1)
    query, key, value = projected.chunk(3, -1)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    mixed = mixed.transpose(2, 3).reshape(count, channels, height, width)
    return x + block.proj(mixed).transpose(0, 1).unsqueeze(0)


def resample(block: Any, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Half or twice the height and width, and where the mode says 3d, of the frames but the film's first."""
    if block.mode == "upsample3d":
        x = _twice_the_frames(block.time_conv, x, memory)
    frames = x[0].transpose(0, 1)
    if block.mode.startswith("upsample"):
        frames = functional.interpolate(frames, scale_factor=2.0, mode="nearest")
    else:
        frames = block.resample[0](frames)
    x = block.resample[1](frames).transpose(0, 1).unsqueeze(0)
    return _half_the_frames(block.time_conv, x, memory) if block.mode == "downsample3d" else x


def _half_the_frames(layer: nn.Conv3d, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    """The film's first frame passes by, and is remembered as it is."""
    if memory.is_start:
        memory.after.append(x)
        return x
    result: torch.Tensor = layer(memory.extend(x, REMEMBERED_HALVING))
    return result


def _twice_the_frames(layer: nn.Conv3d, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    """The film's first frame passes by, and is not remembered: to the layer the film begins behind it."""
    _, channels, count, height, width = x.shape
    if memory.is_start:
        # Computed: as a constant, engines keep it, as large as a feature map.
        memory.after.append(torch.cat([x * 0.0] * REMEMBERED, 2))
        return x
    pairs = convolve(layer, x, memory).reshape(2, channels, count, height, width)
    return pairs.permute(1, 2, 0, 3, 4).reshape(1, channels, 2 * count, height, width)
