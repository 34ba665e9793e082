"""AdcSR's published forward rule, on the tensors of its two files by their published names, in torch's functions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

Tensors = dict[str, torch.Tensor]
HEAD_CHANNELS = 48


def published_picture(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) in [-1, 1] -> (N, 3, 4H, 4W), before the colour fix."""
    net: Tensors = torch.load(folder / "net_params_200.pkl", weights_only=True)
    decoder: Tensors = torch.load(folder / "halfDecoder.ckpt", weights_only=True)["state_dict"]
    features = _unet(net, torch.nn.PixelUnshuffle(2)(x))
    return _up(decoder, _mid_of_decoder(net, features))


def _unet(t: Tensors, x: torch.Tensor) -> torch.Tensor:
    blocks = sum(f"module.body.1.down_blocks.{i}.resnets.0.conv1.weight" in t for i in range(9))
    x = _conv(t, "module.body.1.conv_in", x)
    skips = [x]
    for place in range(2 * blocks + 1):
        name, layer = f"module.body.1.body.{place}", 0
        while f"{name}.resnets.{layer}.conv1.weight" in t:
            x = torch.cat([x, skips.pop()], dim=1) if place > blocks else x
            x = _resnet(t, f"{name}.resnets.{layer}", x, 1e-5)
            if f"{name}.attentions.{layer}.norm.weight" in t:
                x = _transformer(t, f"{name}.attentions.{layer}", x)
            skips += [x] if place < blocks else []
            layer += 1
        if f"{name}.downsamplers.0.conv.weight" in t:
            x = _conv(t, f"{name}.downsamplers.0.conv", x, stride=2)
            skips.append(x)
        x = _upsampled(t, name, x)
    x = functional.silu(_group_norm(t, f"module.body.1.body.{2 * blocks + 1}", x, 1e-5))
    return _conv(t, f"module.body.1.body.{2 * blocks + 3}", x)


def _mid_of_decoder(t: Tensors, x: torch.Tensor) -> torch.Tensor:
    x = _resnet(t, "module.body.2.resnets.0", x, 1e-6, 32)
    name = "module.body.2.attentions.0"
    tokens = _group_norm(t, f"{name}.group_norm", x, 1e-6, 32).flatten(2).transpose(1, 2)
    q, k, v = (_linear(t, f"{name}.to_{letter}", tokens) for letter in "qkv")
    mixed = functional.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v
    x = x + _linear(t, f"{name}.to_out.0", mixed).transpose(1, 2).reshape(x.shape)
    return _resnet(t, "module.body.2.resnets.1", x, 1e-6, 32)


def _up(t: Tensors, x: torch.Tensor) -> torch.Tensor:
    for block in range(4):
        for layer in range(3):
            x = _resnet(t, f"decoder.up_blocks.{block}.resnets.{layer}", x, 1e-6, 32)
        x = _upsampled(t, f"decoder.up_blocks.{block}", x)
    x = functional.silu(_group_norm(t, "decoder.conv_norm_out", x, 1e-6, 32))
    return _conv(t, "decoder.conv_out", x)


def _upsampled(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    if f"{name}.upsamplers.0.conv.weight" not in t:
        return x
    return _conv(t, f"{name}.upsamplers.0.conv", functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def _resnet(t: Tensors, name: str, x: torch.Tensor, eps: float, groups: int = 0) -> torch.Tensor:
    y = _conv(t, f"{name}.conv1", functional.silu(_group_norm(t, f"{name}.norm1", x, eps, groups)))
    y = _conv(t, f"{name}.conv2", functional.silu(_group_norm(t, f"{name}.norm2", y, eps, groups)))
    return y + (_conv(t, f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in t else x)


def _transformer(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    count, channels, height, width = x.shape
    y = _group_norm(t, f"{name}.norm", x, 1e-6).permute(0, 2, 3, 1).reshape(count, height * width, channels)
    y = _linear(t, f"{name}.proj_in", y)
    block = f"{name}.transformer_blocks.0"
    tokens = _layer_norm(t, f"{block}.norm1", y)
    heads = (count, height * width, channels // HEAD_CHANNELS, HEAD_CHANNELS)
    q, k, v = (_linear(t, f"{block}.attn1.to_{letter}", tokens).reshape(heads).transpose(1, 2) for letter in "qkv")
    mixed = functional.softmax(q @ k.transpose(2, 3) / HEAD_CHANNELS**0.5, dim=-1) @ v
    y = y + _linear(t, f"{block}.attn1.to_out.0", mixed.transpose(1, 2).reshape(y.shape))
    value, gate = _linear(t, f"{block}.ff.net.0.proj", _layer_norm(t, f"{block}.norm3", y)).chunk(2, dim=-1)
    y = y + _linear(t, f"{block}.ff.net.2", value * functional.gelu(gate))
    y = _linear(t, f"{name}.proj_out", y)
    return x + y.reshape(count, height, width, channels).permute(0, 3, 1, 2)


def _conv(t: Tensors, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = t[f"{name}.weight"]
    return functional.conv2d(x, weight, t[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


def _linear(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))


def _group_norm(t: Tensors, name: str, x: torch.Tensor, eps: float, groups: int = 0) -> torch.Tensor:
    """groups: 0 for the pruned UNet's rule."""
    groups = groups or next(n for n in (32, 24, 16, 12, 8, 6, 4, 2, 1) if x.shape[1] % n == 0)
    return functional.group_norm(x, groups, t[f"{name}.weight"], t[f"{name}.bias"], eps)


def _layer_norm(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], 1e-5)
