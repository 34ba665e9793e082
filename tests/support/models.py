"""Small random models in diffusers' folder format, with every block type of SD 2.1."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

CONTEXT_CHANNELS = 24


def write_tiny_model(folder: Path) -> Path:
    """A model of about 0.5 M parameters: attention in the VAE, self- and cross-attention, GEGLU, skips."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 48),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=CONTEXT_CHANNELS,
        attention_head_dim=(2, 3),
        use_linear_projection=True,
    )
    for network in (vae, unet):
        for parameter in network.parameters():
            if parameter.ndim == 1:  # norms and biases: random, so that a lost one shows
                parameter.data += 0.2 * torch.randn_like(parameter)
    return write_model(folder, "tiny", unet, vae, torch.randn(1, 7, CONTEXT_CHANNELS))


def write_model(
    folder: Path, name: str, unet: UNet2DConditionModel, vae: AutoencoderKL, context: torch.Tensor
) -> Path:
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    save_file({"context": context}, folder / "context.safetensors")
    settings = {"schema_version": 1, "name": name, "timestep": 999, "upscale_factor": 4}
    settings |= {"resize_filter": "lanczos", "context": "context.safetensors", "licence": "none"}
    (folder / "intsr_model.json").write_text(json.dumps(settings))
    return folder


def edit_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
