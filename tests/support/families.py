"""Families' files as their authors make them, with PEFT itself, and how their code runs them, in plain diffusers.

Nothing here knows IntSR's readers: what a file holds, and what is computed with it, is written out a second time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

HYPIR_MODULES = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
)
OMGSR_MODULES = ["conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0"]
PISA_PATTERNS = (*HYPIR_MODULES, "conv_in")
RANK = 3
CONTEXT_CHANNELS = 24
NAMES = ("osediff", "hypir", "pisasr", "omgsr")
# (N, 3, H, W) in [-1, 1] -> the picture.
Forward = Callable[[torch.Tensor], torch.Tensor]


def write_base(folder: Path, unet: Any, vae: Any) -> Path:
    """SD 2.1 in small, in diffusers' layout and with no word of IntSR's in it but a context."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    torch.manual_seed(11)
    save_file({"context": torch.randn(1, 77, CONTEXT_CHANNELS)}, folder / "context.safetensors")
    return folder


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def randomize(network: torch.nn.Module, seed: int) -> None:
    """B too, which training starts at 0. Small: as far as training moves a network, not to another one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)


def publish(family: str, unet: Any, vae: Any, path: Path) -> tuple[Any, Any]:
    """Write the file, or folder, of a family; returns the networks with PEFT's layers in them, all active."""
    unet, vae = copy.deepcopy(unet), copy.deepcopy(vae)
    return {"hypir": _hypir, "pisasr": _pisasr, "omgsr": _omgsr, "osediff": _osediff}[family](unet, vae, path)


def _lora_of(network: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if "lora" in name}


def _hypir(unet: Any, vae: Any, path: Path) -> tuple[Any, Any]:
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(HYPIR_MODULES))
    )
    randomize(unet, 1)
    torch.save(_lora_of(unet), path)
    return unet, vae


def divided(unet: Any, patterns: tuple[str, ...]) -> dict[str, list[str]]:
    """Modules by OSEDiff's and PiSA-SR's three adapters."""
    lists: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name, _ in unet.named_parameters():
        if "bias" in name or "norm" in name or not any(pattern in name for pattern in patterns):
            continue
        down, up = "down_blocks" in name or "conv_in" in name, "up_blocks" in name or "conv_out" in name
        lists["encoder" if down else "decoder" if up else "others"].append(name.removesuffix(".weight"))
    return lists


def _pisasr(unet: Any, vae: Any, path: Path) -> tuple[Any, Any]:
    lists, saved = divided(unet, PISA_PATTERNS), dict[str, Any]()
    for kind in ("pix", "sem"):
        for division, modules in lists.items():
            config = LoraConfig(r=RANK, init_lora_weights="gaussian", target_modules=modules)
            unet.add_adapter(config, adapter_name=f"default_{division}_{kind}")
            saved[f"unet_lora_{division}_modules_{kind}"] = modules
        saved[f"lora_rank_unet_{kind}"] = RANK
    randomize(unet, 2)
    torch.save(saved | {"state_dict_unet": _lora_of(unet)}, path)
    unet.set_adapter([f"default_{division}_{kind}" for kind in ("pix", "sem") for division in lists])
    return unet, vae


def _osediff(unet: Any, vae: Any, path: Path) -> tuple[Any, Any]:
    lists = divided(unet, HYPIR_MODULES)
    unet.conv_in.weight.data = unet.conv_in.weight + 0.05
    for division, modules in lists.items():
        config = LoraConfig(r=RANK, init_lora_weights="gaussian", target_modules=modules)
        unet.add_adapter(config, adapter_name=f"default_{division}")
    encoder = [name for name, _ in vae.named_parameters() if "bias" not in name and "norm" not in name]
    encoder = [name.removesuffix(".weight") for name in encoder if name.startswith(("encoder", "quant_conv"))]
    vae.add_adapter(LoraConfig(r=RANK, target_modules=encoder), adapter_name="default_encoder")
    randomize(unet, 3)
    randomize(vae, 4)
    saved = {f"unet_lora_{division}_modules": modules for division, modules in lists.items()}
    saved |= {"vae_lora_encoder_modules": encoder, "rank_unet": RANK, "rank_vae": RANK}
    kept = {name: tensor for name, tensor in unet.state_dict().items() if "lora" in name or "conv_in" in name}
    torch.save(saved | {"state_dict_unet": kept, "state_dict_vae": _lora_of(vae)}, path)
    unet.set_adapter([f"default_{division}" for division in lists])
    return unet, vae


def _omgsr(unet: Any, vae: Any, path: Path, **settings: Any) -> tuple[Any, Any]:
    values = {"r": RANK, "lora_alpha": RANK, "init_lora_weights": "gaussian", "target_modules": OMGSR_MODULES}
    for owner, name, adapter in (
        (None, "unet", "unet_lora_adapter"),
        (vae, "encoder", "vae_encoder_lora_adapter"),
    ):
        network = unet if owner is None else getattr(owner, name)
        adapted = PeftModel(network, LoraConfig(**values | settings), adapter_name=adapter)
        randomize(adapted, len(adapter))
        adapted.save_pretrained(path)
        if owner is None:
            unet = adapted
        else:
            setattr(owner, name, adapted)
    return unet, vae


omgsr_with = _omgsr


def forward(family: str, unet: Any, vae: Any, context: torch.Tensor) -> Forward:
    """The family's own rule, with the posterior's mean where it draws from the posterior."""
    noise = scheduler()
    timestep = {"osediff": 999, "hypir": 200, "pisasr": 1, "omgsr": 273}[family]

    def run(x: torch.Tensor) -> torch.Tensor:
        factor = vae.config.scaling_factor
        z = vae.encode(x).latent_dist.mode() * factor
        output = unet(z, timestep, encoder_hidden_states=context.expand(len(z), -1, -1)).sample
        if family == "pisasr":
            x0 = z - output
        elif family == "omgsr":
            alpha = noise.alphas_cumprod[timestep]
            x0 = (z - (1 - alpha).sqrt() * output) / alpha.sqrt()
        else:
            noise.set_timesteps(1000)
            x0 = noise.step(output, timestep, z).pred_original_sample
        picture: torch.Tensor = vae.decode(x0 / factor).sample
        return picture

    return run


def small_networks(seed: int = 5) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Every kind of layer that SD 2.1 has, under its own names, in two levels of one layer each."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=CONTEXT_CHANNELS,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    for network in (unet, vae):
        for parameter in network.parameters():
            if parameter.ndim == 1:  # norms and biases: random, so that a lost one shows
                parameter.data += 0.1 * torch.randn_like(parameter)
    return unet.eval().requires_grad_(False), vae.eval().requires_grad_(False)
