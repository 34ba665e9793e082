"""The official reference's configuration as a model of diffusers, and official checkpoints of any model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from models import write_model
from safetensors.torch import load_file

from intsr.calib.models.open import SRModel, load_model
from intsr.calib.passionsr.forward import halves
from intsr.calib.passionsr.layout import PREFIX, checkpoint_layout

LDM_PREFIX = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


def write_reference_model(reference: Path, folder: Path) -> Path:
    """The reference's random base weights, in ldm's format there, as a model folder; 16x16 latents are tiles of 8."""
    config = json.loads((reference / "config.json").read_text())
    context = load_file(reference / "inputs.safetensors")["context"]
    write_model(folder, "reference", _unet(config["unet_config"]), _vae(config["vae_config"]), context)
    base = load_file(reference / "base_ldm.safetensors")
    empty = load_model(str(folder))
    for part in ("unet", "vae"):
        network = getattr(empty, part)
        state = {}
        for entry in checkpoint_layout(empty, part):
            for key, parameter in entry.module.named_parameters(recurse=False):
                name = f"{LDM_PREFIX[part]}{entry.key.removeprefix(PREFIX)}.{key}"
                state[f"{entry.site.partition('.')[2]}.{key}"] = base.pop(name).reshape(parameter.shape)
        network.load_state_dict(state, strict=True)
        network.save_pretrained(folder / part)
    assert not base, sorted(base)[:3]
    return folder


def _unet(config: dict[str, Any]) -> UNet2DConditionModel:
    channels = tuple(config["model_channels"] * factor for factor in config["channel_mult"])
    return UNet2DConditionModel(
        sample_size=config["image_size"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=config["num_res_blocks"],
        cross_attention_dim=config["context_dim"],
        attention_head_dim=tuple(width // config["num_head_channels"] for width in channels),
        use_linear_projection=config["use_linear_in_transformer"],
    )


def _vae(config: dict[str, Any]) -> AutoencoderKL:
    inner = config["ddconfig"]
    channels = tuple(inner["ch"] * factor for factor in inner["ch_mult"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=inner["num_res_blocks"],
        latent_channels=inner["z_channels"],
        scaling_factor=0.18215,
    )


def sd21_on_meta() -> SRModel:
    """The architecture of Stable Diffusion 2.1 without memory: shapes only."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    model: Any = SimpleNamespace(unet=unet, vae=vae)
    return model


@torch.no_grad()
def random_checkpoint(model: SRModel, part: str, tile_px: int) -> dict[str, torch.Tensor]:
    """A whole official checkpoint of any model: norms and weight ranges are the model's, all else is plausible."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for entry in checkpoint_layout(model, part):
        module: Any = entry.module
        for name, (keys, shape) in entry.tensors.items():
            if name in ("weight", "bias"):
                values = [getattr(module, name).clone()]
            elif name == "bias_range":
                values = [module.bias.min() - 1e-3, module.bias.max() + 1e-3]
            elif name.startswith("weight_"):
                scale = tensors[entry.tensors["scale"][0][0]]
                scaled = module.weight * scale.reshape(1, -1, *[1] * (module.weight.ndim - 2))
                reach = torch.amin if name == "weight_low" else torch.amax
                cuts = halves(scaled.shape[1], len(keys))
                values = [reach(scaled[:, cut].flatten(1), 1).reshape(shape) for cut in cuts]
            elif name == "offset":
                values = [0.05 * torch.randn(shape, generator=generator)]
            elif name.startswith("scale"):
                shape = shape or (_tokens(model, entry.site, tile_px),)
                values = [torch.exp(0.1 * torch.randn(shape, generator=generator))]
            else:
                # Softmax is from 0 to 1.
                ends = [(0.0, 1.0) if "act_quantizer_w" in key else (-4.0, 4.0) for key in keys]
                shares = 1 + 0.1 * torch.rand(len(keys), generator=generator)
                values = [share * end[name.endswith("high")] for share, end in zip(shares, ends, strict=True)]
            tensors.update(zip(keys, values, strict=True))
    return tensors


def _tokens(model: SRModel, site: str, tile_px: int) -> int:
    """Key tokens of an attention block."""
    if site.endswith(".attn2"):
        return int(model.context.shape[1])
    _, blocks, index, *_ = site.split(".")
    last = len(model.unet.down_blocks) - 1
    level = last if blocks == "mid_block" else int(index) if blocks == "down_blocks" else last - int(index)
    return (tile_px * model.spec.upscale_factor >> level + len(model.vae.config.block_out_channels) - 1) ** 2


def save_checkpoints(model: SRModel, folder: Path, tile_px: int) -> list[Path]:
    """Both files of `random_checkpoint`, as torch writes them."""
    paths = {part: folder / f"{part}_ckpt_merge_saw_sep.pth" for part in ("unet", "vae")}
    for part, path in paths.items():
        torch.save(random_checkpoint(model, part, tile_px), path)
    return list(paths.values())
