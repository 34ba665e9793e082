"""The configurations of diffusers that are covered: SD 2.1's kind of UNet and VAE, of any width and depth.

Other settings would be lost in the rewrites for one step (`export.specialize`), or fail in the middle of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intsr.errors import ModelError
from intsr.types import is_kind

# Not set in SD 2.1: another attention, another embedding, or latents moved in a way that nothing here follows.
UNSET = {
    "unet": (
        "only_cross_attention",
        "mid_block_only_cross_attention",
        "dual_cross_attention",
        "cross_attention_norm",
        "class_embed_type",
        "class_embeddings_concat",
        "num_class_embeds",
        "addition_embed_type",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "center_input_sample",
        "time_embedding_act_fn",
        "time_cond_proj_dim",
    ),
    "vae": ("shift_factor", "latents_mean", "latents_std"),
}
PICTURE_CHANNELS, LATENT_CHANNELS, CONTEXT_CHANNELS = 3, 4, 1280  # diffusers' defaults
# What the networks' lowering has (`export.lower.aten`).
ACTIVATIONS = ("silu", "swish", "gelu")
# The first of each is diffusers' default.
KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "unet": {
        "act_fn": ACTIVATIONS,
        "resnet_time_scale_shift": ("default",),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "vae": {
        "act_fn": ACTIVATIONS,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    },
}
# Numbers, one each, with diffusers' default: SDXL's relatives have a list of widths here, a width a block.
SINGLE: dict[str, dict[str, tuple[type, float, str]]] = {
    "unet": {"cross_attention_dim": (int, CONTEXT_CHANNELS, "one whole number, the context's width")},
    "vae": {"scaling_factor": (float, 0.18215, "a number above 0")},
}


def unsupported(part: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what is there, what is expected) for the first setting of `unet` or `vae` that is not covered, else None."""
    for key in UNSET[part]:
        value = config.get(key)
        if any(value) if isinstance(value, (list, tuple)) else value:
            return f"{key} {value!r}", f"none, as in SD 2.1's {part.upper()}"
    for key, known in KNOWN[part].items():
        value = config.get(key, known[0])
        other = [one for one in (value if isinstance(value, (list, tuple)) else [value]) if one not in known]
        if other:
            return f"{key} {other[0]!r}", " or ".join(known)
    for key, (kind, default, expected) in SINGLE[part].items():
        value = config.get(key, default)
        if not is_kind(value, int, kind) or not 0 < value < math.inf:
            return f"{key} {value!r}", expected
    if config.get("norm_num_groups", 32) is None:
        return "norm_num_groups None", "the number of groups"
    return None


def check_channels(unet: Mapping[str, Any], vae: Mapping[str, Any], where: Path) -> None:
    """RGB through the VAE, and its latents through the UNet. Raises ModelError."""
    latents = vae.get("latent_channels", LATENT_CHANNELS)
    wanted = (
        ("vae", vae, PICTURE_CHANNELS, f"{PICTURE_CHANNELS}, red, green and blue"),
        ("unet", unet, latents, f"{latents}, as many as the VAE's latent_channels"),
    )
    for part, config, count, expected in wanted:
        for key in ("in_channels", "out_channels"):
            value = config.get(key, PICTURE_CHANNELS if part == "vae" else LATENT_CHANNELS)
            if value != count:
                raise ModelError(where, f"{part}: {key} {value!r}", expected)
