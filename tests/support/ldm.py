"""diffusers' state dicts under ldm's names: from the structure, not by diffusers' own tables.

Small models that have SD 2.1's structure in full: four levels each, two layers, heads of 64 channels, 32 groups.
"""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

CONTEXT_CHANNELS = 48
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def small_sd21(seed: int = 0) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """SD 2.1's structure with 64 and 32 channels where it has 320 and 128; norms and biases random too."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 64, 128, 128),
        layers_per_block=2,
        attention_head_dim=(1, 1, 2, 2),
        cross_attention_dim=CONTEXT_CHANNELS,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    for network in (unet, vae):
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return unet.eval().requires_grad_(False), vae.eval().requires_grad_(False)


def ldm_state(unet: UNet2DConditionModel, vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """What a single-file checkpoint holds of the two."""
    state = {f"model.diffusion_model.{ldm_unet_name(name)}": t for name, t in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        called = ldm_vae_name(name)
        is_matrix = ".mid.attn_1." in called and tensor.ndim == 2
        # ldm's attention projects with 1x1 convolutions.
        state[f"first_stage_model.{called}"] = tensor[:, :, None, None] if is_matrix else tensor
    return state


def ldm_unet_name(name: str) -> str:
    """Of a model with two layers a level: a level's blocks take three numbers, the third is its sampler's."""
    owner, _, kind = name.rpartition(".")
    if owner in UNET_ENDS:
        return f"{UNET_ENDS[owner]}.{kind}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 2 * int(found[2]) if found[1] == "resnets" else 1
        return f"middle_block.{place}.{_inside(found[1], found[3])}"
    if found := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.+)", name):
        # Behind the attention, where the level has any: only the lowest has none.
        return f"output_blocks.{3 * int(found[1]) + 2}.{1 if found[1] == '0' else 2}.conv.{found[2]}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name)
    assert found is not None, name
    number = 3 * int(found[2]) + int(found[4]) + (found[1] == "down")
    stack = "input_blocks" if found[1] == "down" else "output_blocks"
    return f"{stack}.{number}.{int(found[3] == 'attentions')}.{_inside(found[3], found[5])}"


def _inside(kind: str, name: str) -> str:
    if kind == "attentions":
        return name
    layer, _, parameter = name.rpartition(".")
    return f"{RESNET[layer]}.{parameter}"


def ldm_vae_name(name: str) -> str:
    """Of a VAE with four levels: the decoder's are counted from the picture."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.+)", name):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        return f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)\.(.+)", name):
        return f"encoder.down.{found[1]}.block.{found[2]}.{found[3]}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.(.+)", name):
        return f"encoder.down.{found[1]}.downsample.{found[2]}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d)\.resnets\.(\d)\.(.+)", name):
        return f"decoder.up.{3 - int(found[1])}.block.{found[2]}.{found[3]}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.(.+)", name):
        return f"decoder.up.{3 - int(found[1])}.upsample.{found[2]}"
    return name
