"""Translate the names of diffusers' layers into those of ldm's Stable Diffusion, which PassionSR's checkpoints use.

Made from the model's own structure, so it holds for any number of blocks, layers and channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from intsr.errors import ModelError

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

RESNET_OF_UNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
RESNET_OF_VAE = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
ATTENTION_OF_VAE = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@dataclass(frozen=True, slots=True)
class LdmNames:
    """Site (below `unet.` or `vae.`) -> ldm name (below `model.model.`).

    layers: Conv2d and Linear. convolutions: sites that are a Conv2d in ldm, although diffusers may have made them
    Linear. norms: GroupNorm and LayerNorm. attentions: attention blocks whose matrix products are quantized.
    """

    layers: dict[str, str]
    convolutions: frozenset[str]
    norms: dict[str, str]
    attentions: dict[str, str]


def ldm_names(model: SRModel, part: str) -> LdmNames:
    """Names of `unet` or `vae`. Raises ModelError where a layer has no place in ldm's structure."""
    network: nn.Module = getattr(model, part)
    renamed = dict(_unet_prefixes(network) if part == "unet" else _vae_prefixes(network))
    layers: dict[str, str] = {}
    norms: dict[str, str] = {}
    attentions: dict[str, str] = {}
    convolutions: set[str] = set()
    for name, module in network.named_modules():
        kinds = [
            (isinstance(module, nn.Conv2d | nn.Linear), layers),
            (isinstance(module, nn.GroupNorm | nn.LayerNorm), norms),
            (part == "unet" and name.endswith((".attn1", ".attn2")), attentions),
        ]
        for matches, names in kinds:
            if matches:
                names[f"{part}.{name}"] = _renamed(name, renamed, part)
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and part == "vae"):
            convolutions.add(f"{part}.{name}")
    return LdmNames(layers, frozenset(convolutions), norms, attentions)


def _renamed(name: str, prefixes: dict[str, str], part: str) -> str:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in prefixes:
            return ".".join([prefixes[prefix], *parts[length:]])
    raise ModelError(f"{part}.{name}", "a layer that Stable Diffusion 2.1 has not", "its UNet and AutoencoderKL")


def _resnet(block: str, ldm: str, inner: dict[str, str]) -> Iterator[tuple[str, str]]:
    for ours, theirs in inner.items():
        yield f"{block}.{ours}", f"{ldm}.{theirs}"


def _unet_prefixes(unet: Any) -> Iterator[tuple[str, str]]:
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    index = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{index}.0", RESNET_OF_UNET)
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{index}.1"
            index += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{index}.0.op"
            index += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0", RESNET_OF_UNET)
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _resnet("mid_block.resnets.1", "middle_block.2", RESNET_OF_UNET)
    index = 0
    for i, block in enumerate(unet.up_blocks):
        attends = bool(getattr(block, "attentions", None))
        for j in range(len(block.resnets)):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{index}.0", RESNET_OF_UNET)
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{index}.1"
            index += 1
        if block.upsamplers:
            yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{index - 1}.{2 if attends else 1}.conv"


def _vae_prefixes(vae: Any) -> Iterator[tuple[str, str]]:
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    count = len(vae.decoder.up_blocks)
    halves = (
        ("encoder", "down", vae.encoder.down_blocks, lambda i: i, "downsamplers", "downsample"),
        ("decoder", "up", vae.decoder.up_blocks, lambda i: count - 1 - i, "upsamplers", "upsample"),
    )
    for half, direction, blocks, place, ours, theirs in halves:
        yield from ((f"{half}.conv_in", f"{half}.conv_in"), (f"{half}.conv_out", f"{half}.conv_out"))
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        for i, block in enumerate(blocks):
            source, target = f"{half}.{direction}_blocks.{i}", f"{half}.{direction}.{place(i)}"
            for j in range(len(block.resnets)):
                yield from _resnet(f"{source}.resnets.{j}", f"{target}.block.{j}", RESNET_OF_VAE)
            yield f"{source}.{ours}.0.conv", f"{target}.{theirs}.conv"
        yield from _resnet(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", RESNET_OF_VAE)
        yield from _resnet(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", RESNET_OF_VAE)
        yield from _resnet(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", ATTENTION_OF_VAE)
