"""Single-file checkpoints in ldm's format, the one that SD 2.1 was released in.

The names are translated by diffusers' own converters; the configuration is not fetched but read from the shapes:
widths, depths and where attention is. What no shape tells is as in every SD 2.x: heads of 64 channels, 32 groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intsr.calib.models.families.architecture import SD21
from intsr.errors import ModelError

if TYPE_CHECKING:
    import torch

UNET_PREFIX = "model.diffusion_model."
# Both are in use, and both are known to the converter.
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_PREFIX = "cond_stage_model."
# What training leaves in a file beside the networks: schedules, averages, the text encoder.
OTHER_PREFIXES = ("model_ema.", TEXT_PREFIX, "conditioner.", "first_stage_model.loss.", "global_step", "optimizer")
HEAD_CHANNELS = 64
# A name that only this kind of model has -> what it is.
OTHER_MODELS = {
    "model.diffusion_model.label_emb.0.0.weight": "an SDXL checkpoint",
    "conditioner.embedders.1.model.positional_embedding": "an SDXL checkpoint",
    "conditioner.embedders.0.model.positional_embedding": "an SDXL checkpoint",
    "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": "an SD 3 checkpoint",
    "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": "a Flux checkpoint",
}
EXPECTED = "SD 2.1's UNet and VAE in ldm's or diffusers' format"

Shapes = Mapping[str, tuple[int, ...]]


def without_wrapper(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ldm's .ckpt files keep everything below `state_dict`."""
    return {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}


def configs_from_ldm(shapes: Shapes, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """diffusers' configurations (UNet, VAE). Raises ModelError for anything but an SD 2.x of four latent channels."""
    for name, kind in OTHER_MODELS.items():
        if name in shapes:
            raise ModelError(path, kind, EXPECTED)
    unet = {name.removeprefix(UNET_PREFIX): s for name, s in shapes.items() if name.startswith(UNET_PREFIX)}
    prefix = next((p for p in VAE_PREFIXES if f"{p}encoder.conv_in.weight" in shapes), None)
    if "input_blocks.0.0.weight" not in unet or prefix is None:
        first = ", ".join(sorted(shapes)[:3])
        raise ModelError(path, f"no SD 2.1 checkpoint (it has {first}, ...)", EXPECTED)
    vae = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    try:
        return _unet_config(unet, path), _vae_config(vae, path)
    except (KeyError, IndexError) as error:
        raise ModelError(path, f"no {error} in it, or of another shape", EXPECTED) from error


def _unet_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    """Walk input_blocks: residual blocks until a downsampler (`op`) ends the level."""
    levels: list[list[int]] = [[]]
    attention = [False]
    i = 1
    while any(f"input_blocks.{i}.0.{name}.weight" in shapes for name in ("op", "in_layers.2")):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            levels.append([])
            attention.append(False)
        else:
            levels[-1].append(shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0])
            attention[-1] |= f"input_blocks.{i}.1.norm.weight" in shapes
        i += 1
    first = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    if len(shapes.get("middle_block.1.proj_in.weight", ())) != 2:
        raise ModelError(path, "an SD 1.x checkpoint (its projections are convolutions)", EXPECTED)
    channels, layers = _regular(levels, path)
    if any(width % HEAD_CHANNELS for width in channels):
        raise ModelError(
            path, f"a UNet of widths {channels}", f"multiples of {HEAD_CHANNELS}, a head's width in SD 2.x"
        )
    types = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention]
    return {
        **SD21.unet,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": types,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(types)],
        "cross_attention_dim": shapes[first][1],
        "attention_head_dim": [width // HEAD_CHANNELS for width in channels],
    }


def _vae_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    levels: list[list[int]] = []
    while f"encoder.down.{len(levels)}.block.0.conv2.weight" in shapes:
        block = f"encoder.down.{len(levels)}.block"
        widths: list[int] = []
        while (name := f"{block}.{len(widths)}.conv2.weight") in shapes:
            widths.append(shapes[name][0])
        levels.append(widths)
    channels, layers = _regular(levels, path)
    return {
        **SD21.vae,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
    }


def _regular(levels: Sequence[Sequence[int]], path: Path) -> tuple[list[int], int]:
    """(width of each level, layers of every level)."""
    if not all(levels) or len({len(level) for level in levels}) != 1 or any(len({*level}) != 1 for level in levels):
        raise ModelError(
            path, f"levels of widths {[list(level) for level in levels]}", "as many equal layers in each"
        )
    return [level[0] for level in levels], len(levels[0])


def network_from_ldm(
    part: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], path: Path
) -> dict[str, torch.Tensor]:
    """The weights of `unet` or `vae` under diffusers' names, the very tensors of the file. Raises ModelError.

    Every tensor of that network is used: one that the converter passes over is an error here.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    prefixes = (UNET_PREFIX,) if part == "unet" else VAE_PREFIXES
    own = {
        name: t for name, t in tensors.items() if name.startswith(prefixes) and not name.startswith(OTHER_PREFIXES)
    }
    convert = convert_ldm_unet_checkpoint if part == "unet" else convert_ldm_vae_checkpoint
    try:
        converted: dict[str, torch.Tensor] = convert(dict(own), dict(config))
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise ModelError(path, f"{part}: diffusers cannot convert it ({error})", EXPECTED) from error
    used = {tensor.data_ptr() for tensor in converted.values() if tensor is not None}
    left = [name for name, tensor in own.items() if tensor.data_ptr() not in used]
    if left:
        raise ModelError(path, f"{len(left)} tensors that SD 2.1 has not: {', '.join(left[:3])}", EXPECTED)
    return {name: tensor for name, tensor in converted.items() if tensor is not None}


def check_nothing_else(names: Sequence[str], path: Path) -> None:
    """Raises ModelError for tensors that belong to neither network nor to what training leaves behind."""
    known = (UNET_PREFIX, *VAE_PREFIXES, *OTHER_PREFIXES)
    # Schedules are single words: betas, alphas_cumprod, sqrt_recip_alphas_cumprod, scale_factor, ...
    other = [name for name in names if not name.startswith(known) and "." in name]
    if other:
        raise ModelError(path, f"{len(other)} unknown tensors: {', '.join(other[:3])}", EXPECTED)
