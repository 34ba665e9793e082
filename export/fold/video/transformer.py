"""Wan's transformer at one timestep, with one text and few sizes: latents in, x0 out.

docs/theory.md, "Video transformers":

    modulation    norm(x) (1 + s) + d                 gamma and beta of the norm
    gate          x + g (W y + b)                     rows of W and b times g
    text          softmax(q K(c)^T) V(c)              K and V are constants
    x0            z - sigma v                         rows of proj_out times -sigma, plus z

Parameters keep diffusers' names below `transformer.`. Layers' inputs are those of the model, and so are their
weights, but for rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from intsr.calib.models.video import VideoModel
from intsr.calib.models.video_spec import VideoSpec
from intsr.errors import ExportError
from intsr.export.fold.video.layers import affine
from intsr.export.fold.video.types import SpecializedVideoNetwork

Factors = dict[str, torch.Tensor]
# Cosines and sines.
Angles = tuple[torch.Tensor, torch.Tensor]
# Of a block, the layers whose output is multiplied by a gate.
GATED = ("attn1.to_out.0", "ffn.net.2")


class SpecializedTransformer(nn.Module):
    """latent (1, C, f, h, w) -> x0, the same shape, both as (VAE's latents - mean) / std."""

    def __init__(self, transformer: Any, latent_sizes: tuple[tuple[int, int, int], ...]) -> None:
        """transformer: whose blocks have no modulation and no text any more. latent_sizes: (f, h, w) each."""
        super().__init__()
        config = transformer.config
        _, *patch = config.patch_size
        self.patch, self.channels = tuple(patch), config.out_channels or config.in_channels
        self.heads, self.latent_sizes = config.num_attention_heads, latent_sizes
        self.transformer = transformer
        weight = transformer.proj_out.weight
        for index, size in enumerate(latent_sizes):
            if size[1] % patch[0] or size[2] % patch[1]:
                got = f"latents of {size[1]} x {size[2]}"
                raise ExportError("transformer", got, f"multiples of {patch[0]} x {patch[1]}")
            if max(self._grid(size)) > config.rope_max_seq_len:
                got = f"{' x '.join(map(str, self._grid(size)))} tokens"
                raise ExportError("transformer", got, f"at most {config.rope_max_seq_len} along each axis")
            # (1, C, frames, height, width) is all that the tables want to know of the latents.
            cosines, sines = transformer.rope(weight.new_empty(1, 1, *size))
            # Each of them is there twice, once for either of a pair of channels.
            self.register_buffer(f"cosines_{index}", cosines[0, :, 0, 0::2].contiguous())
            self.register_buffer(f"sines_{index}", sines[0, :, 0, 1::2].contiguous())
        transformer.rope = None

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int, int]:
        """The tokens along each axis of latents of (f, h, w)."""
        return size[0], size[1] // self.patch[0], size[2] // self.patch[1]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        size = tuple(latent.shape[2:])
        index = self.latent_sizes.index(size)
        angles = self.get_buffer(f"cosines_{index}"), self.get_buffer(f"sines_{index}")
        tokens = self.transformer.patch_embedding(latent).flatten(2).transpose(1, 2)
        for block in self.transformer.blocks:
            tokens = tokens + self._self_attention(block.attn1, block.norm1(tokens), angles)
            tokens = tokens + self._text_attention(block.attn2, block.norm2(tokens))
            tokens = tokens + block.ffn(block.norm3(tokens))
        patches = self.transformer.proj_out(self.transformer.norm_out(tokens))
        scaled = patches.reshape(*self._grid(size), *self.patch, self.channels).permute(5, 0, 1, 3, 2, 4)
        denoised: torch.Tensor = latent + scaled.reshape(latent.shape)
        return denoised

    def _self_attention(self, attention: Any, x: torch.Tensor, angles: Angles) -> torch.Tensor:
        query = _rotated(self._in_heads(attention.norm_q(attention.to_q(x))), angles)
        key = _rotated(self._in_heads(attention.norm_k(attention.to_k(x))), angles)
        return _mixed(attention, query, key, self._in_heads(attention.to_v(x)))

    def _text_attention(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        query = self._in_heads(attention.norm_q(attention.to_q(x)))
        return _mixed(attention, query, attention.key, attention.value)

    def _in_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, channels) -> (1, heads, tokens, head channels)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _rotated(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Each pair of channels by the token's angles."""
    pairs, (cosines, sines) = x.unflatten(-1, (-1, 2)), angles
    first, second = pairs[..., 0], pairs[..., 1]
    turned = (first * cosines - second * sines, first * sines + second * cosines)
    return torch.stack(turned, -1).flatten(-2)


def _mixed(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    mixed = functional.scaled_dot_product_attention(query, key, value)
    output: torch.Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(-2))
    return output


@torch.no_grad()
def specialize_transformer(model: VideoModel, *latent_sizes: tuple[int, int, int]) -> SpecializedVideoNetwork:
    """Fold everything that the fixed timestep, context and sizes make constant.

    latent_sizes: (frames, height, width) of the latents that it is for. `model.transformer` is used up: its layers
    are replaced one by one, so that a model that is held nowhere else is never there twice. Raises ExportError for a
    size that it cannot take.
    """
    transformer = model.transformer
    weight = transformer.proj_out.weight
    timestep = torch.tensor([model.spec.timestep])
    time, modulation, text, _ = transformer.condition_embedder(timestep, model.context.to(weight.dtype))
    transformer.condition_embedder = None
    rows: Factors = {}
    plain = {
        f"transformer.blocks.{index}.{name}": block.get_submodule(name).weight
        for index, block in enumerate(transformer.blocks)
        for name in GATED
    }
    for index, block in enumerate(transformer.blocks):
        _fold_block(block, f"transformer.blocks.{index}", modulation.unflatten(1, (6, -1)), rows)
        _fold_text(block.attn2, text)
    _fold_output(transformer, time, model.spec, rows)
    module = SpecializedTransformer(transformer, latent_sizes).eval().requires_grad_(False)
    return SpecializedVideoNetwork("transformer", module, model.spec, rows, plain_weights=plain)


def _fold_block(block: Any, site: str, modulation: torch.Tensor, rows: Factors) -> None:
    """modulation: (1, 6, C), the timestep's; the block adds its own to it."""
    table = (block.scale_shift_table + modulation)[0]
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table
    del block.scale_shift_table
    attention, feed = block.attn1, block.ffn.net
    attention.to_out[0] = affine(attention.to_out[0], rows=gate)
    feed[2] = affine(feed[2], rows=ffn_gate)
    rows |= {f"{site}.{name}": factor for name, factor in zip(GATED, (gate, ffn_gate), strict=True)}
    block.norm1 = _modulated_norm(block.norm1, scale, shift)
    block.norm2 = _plain_norm(block.norm2)
    block.norm3 = _modulated_norm(block.norm3, ffn_scale, ffn_shift)


def _fold_text(attention: Any, text: torch.Tensor) -> None:
    """text: (1, tokens, C) -> the buffers `key` and `value`, (1, heads, tokens, head channels) each."""
    for name, values in (("key", attention.norm_k(attention.to_k(text))), ("value", attention.to_v(text))):
        attention.register_buffer(name, values.unflatten(-1, (attention.heads, -1)).transpose(1, 2).contiguous())
    attention.to_k = attention.to_v = attention.norm_k = None


def _fold_output(transformer: Any, time: torch.Tensor, spec: VideoSpec, rows: Factors) -> None:
    """time: (1, C), the timestep's embedding; the output's own table is added to it."""
    shift, scale = (transformer.scale_shift_table + time.unsqueeze(1))[0]
    del transformer.scale_shift_table
    factor = shift.new_full((transformer.proj_out.out_features,), -spec.sigma)
    transformer.proj_out = affine(transformer.proj_out, rows=factor)
    transformer.norm_out = _modulated_norm(transformer.norm_out, scale, shift)
    rows["transformer.proj_out"] = factor


def _modulated_norm(norm: nn.LayerNorm, scale: torch.Tensor, shift: torch.Tensor) -> nn.LayerNorm:
    """norm(x) (1 + scale) + shift of a norm that has no weights of its own."""
    assert norm.weight is None
    made = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    made.weight, made.bias = (nn.Parameter(values, requires_grad=False) for values in (1 + scale, shift))
    return made


def _plain_norm(norm: nn.Module) -> nn.Module:
    """torch's own LayerNorm, which keeps its input's type, for diffusers' that computes in float32; none for none."""
    if not isinstance(norm, nn.LayerNorm):
        return norm
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain
