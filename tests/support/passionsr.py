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
from intsr.calib.passionsr.checkpoint import PIECES, PREFIX, expected_shapes
from intsr.calib.passionsr.forward import halves
from intsr.calib.passionsr.names import ldm_names

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
        names = ldm_names(empty, part)
        state = {}
        for site, name in {**names.layers, **names.norms}.items():
            inner = site.partition(".")[2]
            for key, parameter in network.get_submodule(inner).named_parameters():
                state[f"{inner}.{key}"] = base.pop(f"{LDM_PREFIX[part]}{name}.{key}").reshape(parameter.shape)
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


def random_checkpoint(model: SRModel, part: str, tile_px: int) -> dict[str, torch.Tensor]:
    """A whole official checkpoint of any model: norms and weight ranges are the model's, all else is plausible."""
    generator = torch.Generator().manual_seed(0)
    network, names = getattr(model, part), ldm_names(model, part)
    shapes = expected_shapes(model, part, names)
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        if shape is None:
            tensors[key] = torch.exp(0.1 * torch.randn(_tokens(model, key, tile_px), generator=generator))
        elif "scale_factor" in key:
            tensors[key] = torch.exp(0.1 * torch.randn(shape, generator=generator))
        elif key.endswith(".offset"):
            tensors[key] = 0.05 * torch.randn(shape, generator=generator)
        elif key.endswith(("x_min", "x_max")):
            weights = "act_quantizer_w" in key
            ends = {"x_min": 0.0 if weights else -4.0, "x_max": 1.0 if weights else 4.0}
            tensors[key] = torch.tensor(ends[key[-5:]] * (1 + 0.1 * float(torch.rand((), generator=generator))))
    for site, name in names.norms.items():
        for kind, value in network.get_submodule(site.partition(".")[2]).named_parameters():
            tensors[f"{PREFIX}{name}.{kind}"] = value.detach().clone()
    for site, name in names.layers.items():
        layer, key = network.get_submodule(site.partition(".")[2]), PREFIX + name
        if layer.bias is not None:
            ends_of_bias = (layer.bias.min() - 1e-3, layer.bias.max() + 1e-3)
            for end, value in zip(("x_min", "x_max"), ends_of_bias, strict=True):
                tensors[f"{key}.bias_quantizer.{end}"] = value.detach()
        scale = tensors[f"{key}.scale_factor"].flatten().reshape(1, -1, *[1] * (layer.weight.ndim - 2))
        rows = (layer.weight * scale).detach().flatten(2) if layer.weight.ndim == 4 else layer.weight * scale
        for piece, cut in enumerate(halves(layer.weight.shape[1], PIECES[part])):
            flat = rows[:, cut].flatten(1)
            for end, value in (("x_min", flat.amin(1)), ("x_max", flat.amax(1))):
                place = f"{key}.weight_quantizer_{piece}.{end}"
                shape = shapes[place]
                assert shape is not None
                tensors[place] = value.detach().reshape(shape)
    return tensors


def _tokens(model: SRModel, key: str, tile_px: int) -> int:
    """Key tokens of an attention block, told by its ldm name's place."""
    if ".attn2." in key:
        return int(model.context.shape[1])
    site = {name: site for site, name in ldm_names(model, "unet").attentions.items()}[
        key.removeprefix(PREFIX).removesuffix(".scale_factor_vw")
    ]
    side = tile_px * model.spec.upscale_factor // 2 ** (len(model.vae.config.block_out_channels) - 1)
    levels = len(model.unet.down_blocks)
    _, block, index, *_ = site.split(".")
    level = {"down_blocks": int(index) if block == "down_blocks" else 0, "mid_block": levels - 1}.get(block)
    if level is None:
        level = levels - 1 - int(index)
    return (side >> level) ** 2


def save_checkpoints(model: SRModel, folder: Path, tile_px: int) -> list[Path]:
    """Both files of `random_checkpoint`, as torch writes them."""
    paths = {part: folder / f"{part}_ckpt_merge_saw_sep.pth" for part in ("unet", "vae")}
    for part, path in paths.items():
        torch.save(random_checkpoint(model, part, tile_px), path)
    return list(paths.values())
