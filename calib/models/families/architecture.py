"""Architectures: what decides a model's shapes, in diffusers' own configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# CLIP's prompt length, of every model that brings no context of its own.
PROMPT_TOKENS = 77
# The one-step defaults of OSEDiff and PassionSR, and SD 2.1's scheduler and latents.
SD21_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's shapes. unet and vae: diffusers' configurations, as in their config.json.

    synthetic: of a model of random weights.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    context_tokens: int = PROMPT_TOKENS
    synthetic: bool = False

    @property
    def networks(self) -> dict[str, Mapping[str, Any]]:
        """The configurations by part."""
        return {"unet": self.unet, "vae": self.vae}

    @property
    def context_channels(self) -> int:
        return int(self.unet["cross_attention_dim"])


# Stable Diffusion 2.1 (base): what OSEDiff, PassionSR and their kin are made from.
SD21 = Architecture(
    name="sd21",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": [5, 10, 20, 20],  # diffusers' name for the number of heads: 64 channels each
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
    },
    vae={
        "_class_name": "AutoencoderKL",
        "sample_size": 768,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "scaling_factor": 0.18215,
    },
)
ARCHITECTURES = {SD21.name: SD21}

# The VAE of SD 2.1 was saved when diffusers' attention still had these names.
DEPRECATED_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def current_name(name: str) -> str:
    """A parameter's name as diffusers has it today."""
    if ".attentions." in name:
        for old, new in DEPRECATED_ATTENTION.items():
            name = name.replace(old, new)
    return name
