"""Small video models of Wan's structure in diffusers' format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from numpy.typing import NDArray
from safetensors.torch import save_file

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import VIDEO_FLOAT_SITES
from intsr.calib.models.video import VideoModel
from intsr.export.fold.fold import fake_quantized
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder

# diffusers' own test configurations.
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
VAE: dict[str, Any] = {
    "base_dim": 3,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
# Of widths that divide into blocks of 64.
WIDE = {**TRANSFORMER, "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128, "cross_attn_norm": False}
WIDE_VAE = {**VAE, "base_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 2}
CONTEXT_TOKENS = 7
# Of the engines that tests compile of them: low-resolution tile, its output, chunk.
TILE_PX, SIDE_PX, FRAMES = 8, 32, 5


def write_video_model(folder: Path, transformer: dict[str, Any] = TRANSFORMER, vae: dict[str, Any] = VAE) -> Path:
    """A folder of random weights, norms and biases included, so that a lost one shows."""
    torch.manual_seed(0)
    networks = {"transformer": WanTransformer3DModel(**transformer), "vae": AutoencoderKLWan(**vae)}
    for part, network in networks.items():
        for parameter in network.parameters():
            if parameter.squeeze().ndim <= 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        network.save_pretrained(folder / part)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    save_file({"context": torch.randn(1, CONTEXT_TOKENS, transformer["text_dim"])}, folder / "context.safetensors")
    settings = {"schema_version": 1, "name": "tiny-wan", "timestep": 399, "upscale_factor": 4}
    settings |= {"resize_filter": "bicubic", "context": "context.safetensors", "licence": "none"}
    (folder / "intsr_model.json").write_text(json.dumps(settings))
    return folder


def stays_float(sites: Iterable[str]) -> set[str]:
    """Those beside frames and latents, and those that are given the VAE's residual stream itself."""
    streams = (".resample.1", ".time_conv", ".conv_shortcut")
    return {site for site in sites if site in VIDEO_FLOAT_SITES or site.endswith(streams)}


@contextmanager
def double_precision() -> Iterator[None]:
    """diffusers' modules in float64 throughout: what they would cast to float32 stays as it is."""
    cast = torch.Tensor.float
    torch.Tensor.float = lambda x: x if x.dtype is torch.float64 else cast(x)
    try:
        yield
    finally:
        torch.Tensor.float = cast


def in_double(model: VideoModel) -> VideoModel:
    """A copy in float64."""
    return replace(model, transformer=deepcopy(model.transformer).double(), vae=deepcopy(model.vae).double())


def in_chunks(module: torch.nn.Module, x: torch.Tensor, frames: int) -> torch.Tensor:
    """Film (1, C, 1 + frames * n, H, W) chunk by chunk: the first frame, and then `frames` at a time."""
    outputs = []
    y, *memory = module(x[:, :, :1])
    for start in range(1, x.shape[2], frames):
        outputs.append(y)
        y, *memory = module(x[:, :, start : start + frames], *memory)
    return torch.cat([*outputs, y], 2)


@torch.no_grad()
def simulated_chunk(model: VideoModel, calibration: Calibration, x: torch.Tensor) -> NDArray[np.float32]:
    """Frames (1, 3, 4n + 1, H, W) through the folded networks in torch, fake-quantized, chunk by chunk."""
    encoder, decoder = (
        fake_quantized(fold_video_network(specialize(model), calibration))
        for specialize in (specialize_encoder, specialize_decoder)
    )
    latents = in_chunks(encoder, x, 4)
    _, _, *size = latents.shape
    specialized = specialize_transformer(model.load("transformer"), tuple(size))
    denoised = fake_quantized(fold_video_network(specialized, calibration))(latents)
    return in_chunks(decoder, denoised, 1).numpy()
