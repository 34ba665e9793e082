"""Wan 2.1's video transformer and its causal VAE: which configurations are covered, and the names of their weights.

Everything else would be lost in the rewrites for one step, or fail in the middle of a pass. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intsr.errors import ModelError
from intsr.types import MAX_BITS, Bits, is_kind

if TYPE_CHECKING:
    import torch

VIDEO_PARTS = ("transformer", "vae")
VIDEO_CLASSES = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan"}
# The VAE puts so many frames into one of latents, after a first frame that stands alone.
TEMPORAL_FACTOR = 4
# diffusers' defaults, where a configuration leaves them out.
PICTURE_CHANNELS, LATENT_CHANNELS, TEXT_CHANNELS = 3, 16, 4096
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
# Every setting of diffusers' class -> its default. Others belong to a transformer or VAE of another make.
SETTINGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "text_dim": TEXT_CHANNELS,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    },
    "vae": {
        "base_dim": 96,
        "decoder_base_dim": None,
        "z_dim": LATENT_CHANNELS,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "dropout": 0.0,
        "latents_mean": list(LATENTS_MEAN),
        "latents_std": list(LATENTS_STD),
        "is_residual": False,
        "in_channels": PICTURE_CHANNELS,
        "out_channels": PICTURE_CHANNELS,
        "patch_size": None,
        "scale_factor_temporal": TEMPORAL_FACTOR,
        "scale_factor_spatial": 8,
    },
}
# Not set in Wan 2.1's text-to-video models -> what sets them.
UNSET = {
    "transformer": {
        "image_dim": "image conditioning",
        "added_kv_proj_dim": "image conditioning",
        "pos_embed_seq_len": "image conditioning",
    },
    "vae": {
        "is_residual": "Wan 2.2's VAE",
        "patch_size": "Wan 2.2's VAE",
        "attn_scales": "attention at other scales",
    },
}
# The layers beside frames and latents stay float in every engine, for the reasons of SD 2.1's: they have few channels
# and little of the work, everything that a frame is made of goes through the latents, and a frame's own levels lie
# half-way between the codes of any grid on [-1, 1].
VIDEO_FLOAT_SITES = frozenset(
    (
        *("vae.encoder.conv_in", "vae.encoder.conv_out", "vae.quant_conv"),
        *("transformer.patch_embedding", "transformer.proj_out"),
        *("vae.post_quant_conv", "vae.decoder.conv_in", "vae.decoder.conv_out"),
    )
)
# Layers of the VAE that are given its residual stream itself, which no norm holds, stay float, too: resampling in
# space and time, and shortcuts. Whatever a frame is made of passes all of them, constant channels beside the colours.
# docs/measure/video.md has what their eight bits cost.
VIDEO_BARE_STREAM = (".resample.1", ".time_conv", ".conv_shortcut")
# Layers that a fixed timestep and text make constant.
VIDEO_CONSTANT = ("condition_embedder.", ".attn2.to_k", ".attn2.to_v")
# A name that only Wan's own checkpoints have, whatever they put in front.
ORIGINAL_NAME = "time_embedding.0.weight"


@dataclass(frozen=True, slots=True)
class VideoArchitecture:
    """A video model's shapes. transformer and vae: diffusers' configurations, as in their config.json.

    synthetic: of a model of random weights.
    """

    name: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    context_tokens: int = 512
    synthetic: bool = False

    @property
    def networks(self) -> dict[str, Mapping[str, Any]]:
        """The configurations by part."""
        return {"transformer": self.transformer, "vae": self.vae}

    @property
    def context_channels(self) -> int:
        return int(setting("transformer", self.transformer, "text_dim"))


# diffusers' own for Wan; its shift says nothing about one step.
WAN_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
WAN21_1_3B = VideoArchitecture(
    name="wan2.1-1.3b",
    transformer={
        "_class_name": VIDEO_CLASSES["transformer"],
        **SETTINGS["transformer"],
        "num_attention_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
    },
    vae={"_class_name": VIDEO_CLASSES["vae"], **SETTINGS["vae"]},
)
VIDEO_ARCHITECTURES = {WAN21_1_3B.name: WAN21_1_3B}


def setting(part: str, config: Mapping[str, Any], key: str) -> Any:
    """Return a setting of the configuration, diffusers' default where it is left out."""
    return config.get(key, SETTINGS[part][key])


def is_integer_video_site(site: str) -> bool:
    """Tell whether engines run the layer on integers. site: its name below `transformer.` or `vae.`."""
    if site in VIDEO_FLOAT_SITES or site.endswith(VIDEO_BARE_STREAM):
        return False
    return not any(part in site for part in VIDEO_CONSTANT)


def bits_of_video_site(site: str, bits: Bits) -> tuple[int, int]:
    """Return (weight bits, activation bits) of one site: the VAE, a few percent of the weights, keeps 8 of both, or 7
    for weights where all have 7: some CPUs multiply no larger ones.
    """
    assert bits.weights is not None and bits.activations is not None
    if site.startswith("vae."):
        return 7 if bits.weights == 7 else MAX_BITS, MAX_BITS
    return bits.of_site(site) or (bits.weights, bits.activations)


def spatial_factor(vae: Mapping[str, Any]) -> int:
    """Return how many pixels of a side are one of the latents'."""
    return int(2 ** (len(setting("vae", vae, "dim_mult")) - 1))


def check_video_config(part: str, config: Mapping[str, Any], where: Path) -> None:
    """Raises ModelError for a configuration that is not of Wan 2.1's kind; no weights are read for that."""
    name = config.get("_class_name")
    if name != VIDEO_CLASSES[part]:
        raise ModelError(where, f"class {name}", f"{VIDEO_CLASSES[part]}, of Wan 2.1")
    for key, value in config.items():
        if not key.startswith("_") and key not in SETTINGS[part] and value not in (None, False):
            raise ModelError(where, f"{key} {value!r}, a setting that Wan 2.1's {part} has not", "Wan 2.1's settings")
    for key, kind in UNSET[part].items():
        if setting(part, config, key):
            raise ModelError(where, f"{key} {config[key]!r}: {kind}", f"none, as in Wan 2.1's {part}")
    problem = _transformer_problem(config) if part == "transformer" else _vae_problem(config)
    if problem is not None:
        raise ModelError(where, *problem)


def _transformer_problem(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what is there, what is expected) for the first setting of another value."""
    norm, patch = (setting("transformer", config, key) for key in ("qk_norm", "patch_size"))
    if norm != "rms_norm_across_heads":
        return f"qk_norm {norm!r}", "'rms_norm_across_heads'"
    if not _are_counts(patch, 3) or patch[0] != 1:
        return f"patch_size {patch!r}", "[1, height, width]"
    for key in ("num_attention_heads", "attention_head_dim", "num_layers", "text_dim"):
        if not _are_counts([setting("transformer", config, key)], 1):
            return f"{key} {config[key]!r}", "a whole number above 0"
    if (width := setting("transformer", config, "attention_head_dim")) % 2:
        return f"attention_head_dim {width}", "an even number: channels are turned in pairs"
    return None


def _vae_problem(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what is there, what is expected) for the first setting of another value."""
    channels, levels, halved = (setting("vae", config, k) for k in ("z_dim", "dim_mult", "temperal_downsample"))
    if not _are_counts([channels], 1):
        return f"z_dim {channels!r}", "a whole number above 0"
    if not _are_counts(levels, None):
        return f"dim_mult {levels!r}", "whole numbers above 0"
    steps = [value is True for value in halved] if isinstance(halved, (list, tuple)) else []
    if len(steps) != len(levels) - 1 or 2 ** sum(steps) != TEMPORAL_FACTOR:
        return f"temperal_downsample {halved!r}", f"one for each of {len(levels) - 1} steps, two of them true"
    for key, wanted in (("scale_factor_temporal", TEMPORAL_FACTOR), ("scale_factor_spatial", spatial_factor(config))):
        if key in config and config[key] != wanted:
            return f"{key} {config[key]!r}", f"{wanted}, which its levels give"
    for key in ("in_channels", "out_channels"):
        if (value := setting("vae", config, key)) != PICTURE_CHANNELS:
            return f"{key} {value!r}", f"{PICTURE_CHANNELS}, red, green and blue"
    for key in ("latents_mean", "latents_std"):
        values = setting("vae", config, key)
        above = 0 if key == "latents_std" else -math.inf
        right = isinstance(values, (list, tuple)) and len(values) == channels
        if not right or not all(is_kind(v, int, float) and above < v < math.inf for v in values):
            kind = f"numbers{' above 0' * (above == 0)}"
            return f"{key} {values!r}", f"{channels} {kind}, one a latent channel"
    return None


def _are_counts(values: Any, count: int | None) -> bool:
    right = isinstance(values, (list, tuple)) and len(values) > 0 and count in (None, len(values))
    return right and all(is_kind(value, int) and value > 0 for value in values)


def check_video_channels(transformer: Mapping[str, Any], vae: Mapping[str, Any], where: Path) -> None:
    """The VAE's latents through the transformer, and nothing beside them. Raises ModelError."""
    latents = setting("vae", vae, "z_dim")
    for key in ("in_channels", "out_channels"):
        # diffusers takes a missing or null out_channels for as many as go in.
        value = setting("transformer", transformer, key)
        if value != latents and not (key == "out_channels" and value is None):
            kind = " (image or low-resolution conditioning beside the latents)" * (key == "in_channels")
            raise ModelError(where, f"transformer: {key} {value!r}{kind}", f"{latents}, as many as the VAE's z_dim")


def current_video_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The transformer's weights under diffusers' names; Wan's own are translated by diffusers' own converter."""
    if not any(name.endswith(ORIGINAL_NAME) for name in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    converted: dict[str, torch.Tensor] = convert_wan_transformer_to_diffusers(dict(tensors))
    return converted


def put_rope(transformer: Any) -> None:
    """Give the transformer its rotary tables, which no file holds, in the place of those on torch's meta device."""
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    config = transformer.config
    transformer.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
