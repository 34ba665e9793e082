"""What a calibrated checkpoint of PassionSR holds, as one table: our site and number -> its keys and their shape.

Keys are `model.model.<ldm's name>.<tensor>`; ldm's names are made from the model's own structure, so the table holds
for any number of blocks, layers and channels. docs/theory.md, "PassionSR's checkpoints".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from intsr.errors import ModelError

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

PREFIX = "model.model."
# The official model splits every layer of the UNet, and no layer of the VAE.
PIECES = {"unet": 2, "vae": 1}
# Layers that the official model keeps at 8 bits whatever is asked for.
EIGHT_BIT_SITES = (
    "unet.time_embedding.linear_1",
    "unet.conv_out",
    "vae.quant_conv",
    "vae.post_quant_conv",
    "vae.encoder.conv_out",
    "vae.decoder.conv_out",
)
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PIECES = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "down_blocks.": "down.",
    ".resnets.": ".block.",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    ".to_": ".",
}

# Keys, and the shape of each; None: one dimension, as long as there are tokens.
Shape: TypeAlias = tuple[int, ...] | None
Tensors: TypeAlias = tuple[tuple[str, ...], Shape]


@dataclass(frozen=True, slots=True)
class Entry:
    """One layer, norm or attention. tensors: by the names of PassionSRLayer, torch's norms and PassionSRAttention."""

    site: str
    # What its keys begin with.
    key: str
    module: nn.Module
    tensors: dict[str, Tensors]
    # Whether a layer is one in ldm, although diffusers may have made it linear.
    convolution: bool = False


def checkpoint_layout(model: SRModel, part: str) -> list[Entry]:
    """All that a checkpoint of `unet` or `vae` holds. Raises ModelError for a layer that ldm's structure lacks."""
    network: Any = getattr(model, part)
    blocks = dict(_unet_blocks(network)) if part == "unet" else {}
    entries = []
    for name, module in network.named_modules():
        convolution = isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and part == "vae")
        if isinstance(module, nn.Conv2d | nn.Linear):
            tensors = _of_layer(module, convolution, PIECES[part])
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            tensors = {key: ((key,), tuple(module.weight.shape)) for key in ("weight", "bias")}
        elif part == "unet" and name.endswith((".attn1", ".attn2")):
            tensors = _of_attention(module)
        else:
            continue
        prefix = PREFIX + (_unet_name(name, blocks) if part == "unet" else _vae_name(name, network))
        whole = {key: (tuple(f"{prefix}.{end}" for end in ends), shape) for key, (ends, shape) in tensors.items()}
        entries.append(Entry(f"{part}.{name}", prefix, module, whole, convolution))
    return entries


def _of_layer(layer: nn.Conv2d | nn.Linear, convolution: bool, pieces: int) -> dict[str, Tensors]:
    rows, columns = layer.weight.shape[:2]
    tail = (1, 1) if convolution else ()
    tensors: dict[str, Tensors] = {
        "scale": (("scale_factor",), (1, columns, *tail)),
        "offset": (("offset",), (1, columns, *tail)),
    }
    if layer.bias is not None:
        tensors["bias_range"] = (("bias_quantizer.x_min", "bias_quantizer.x_max"), ())
    for end, key in (("low", "x_min"), ("high", "x_max")):
        tensors[f"weight_{end}"] = (tuple(f"weight_quantizer_{i}.{key}" for i in range(pieces)), (rows, 1, *tail))
        tensors[f"input_{end}"] = (tuple(f"act_quantizer_{i}.{key}" for i in range(pieces)), ())
    return tensors


def _of_attention(attention: Any) -> dict[str, Tensors]:
    return {
        "scale_qk": (("scale_factor_qk",), (attention.to_q.out_features // attention.heads,)),
        "scale_vw": (("scale_factor_vw",), None),
        # In the order of ATTENTION_ROLES.
        "low": (tuple(f"act_quantizer_{role}.x_min" for role in "qkwv"), ()),
        "high": (tuple(f"act_quantizer_{role}.x_max" for role in "qkwv"), ()),
    }


def _vae_name(name: str, vae: Any) -> str:
    last = len(vae.decoder.up_blocks) - 1
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", name)
    for ours, theirs in VAE_PIECES.items():
        name = name.replace(ours, theirs)
    return name


def _unet_name(name: str, blocks: dict[str, str]) -> str:
    for ours, theirs in blocks.items():
        if f"{name}.".startswith(f"{ours}."):
            rest = name[len(ours) + 1 :]
            return f"{theirs}.{UNET_RESNET.get(rest, rest)}" if rest else theirs
    raise ModelError(f"unet.{name}", "a layer that Stable Diffusion 2.1 has not", "its UNet and AutoencoderKL")


def _unet_blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """What ldm counts through all levels, and the ends, by the names here."""
    yield from UNET_ENDS.items()
    index = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{index}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{index}.1"
            index += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{index}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{index}.1"
            index += 1
        # Behind the level's last block.
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{index - 1}.{1 + hasattr(block, 'attentions')}"
