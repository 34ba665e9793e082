"""Parameters and operations of a video model for one chunk of frames, from its architecture alone.

As `cost` counts picture models. Attention's two products are counted apart: at the sizes of films they are most of
the work, and no bits of weights make them less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from intsr.calib.models.cost import NetworkCost, tokens_from_context, total_from_costs
from intsr.calib.models.families.wan import (
    TEMPORAL_FACTOR,
    VIDEO_ARCHITECTURES,
    VIDEO_PARTS,
    VideoArchitecture,
    setting,
    spatial_factor,
)
from intsr.calib.models.find import find_model
from intsr.calib.models.spec import SPEC_NAME
from intsr.calib.models.video_spec import read_video_settings
from intsr.calib.models.weights import empty_network, is_video_folder, read_video_configs
from intsr.errors import ModelError, UsageError

DEFAULT_FRAMES = 25
# What a fixed timestep and text take out of the transformer, by the names of parameters.
CONSTANT = ("condition_embedder.", "scale_shift_table", ".attn2.to_k.", ".attn2.to_v.", ".attn2.norm_k.")
LAYERS = (nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """A chunk of output frames."""

    frames: int
    width_px: int
    height_px: int

    def latents(self, architecture: VideoArchitecture) -> tuple[int, int, int]:
        """(frames, height, width) of its latents. Raises UsageError for a chunk that the networks cannot take."""
        check_frames(self.frames)
        factor = spatial_factor(architecture.vae)
        patch = setting("transformer", architecture.transformer, "patch_size")
        for name, side, of_patch in (("high", self.height_px, patch[1]), ("wide", self.width_px, patch[2])):
            step = factor * of_patch
            if side < 1 or side % step:
                raise UsageError("--size", f"{side} pixels {name}", f"a positive multiple of {step}")
        latents = 1 + (self.frames - 1) // TEMPORAL_FACTOR, self.height_px // factor, self.width_px // factor
        most = setting("transformer", architecture.transformer, "rope_max_seq_len")
        grid = [side // step for side, step in zip(latents, patch, strict=True)]
        if max(grid) > most:
            got = (
                f"{self.frames} frames of {self.width_px} x {self.height_px} are {' x '.join(map(str, grid))} tokens"
            )
            raise UsageError("a chunk", got, f"at most {most} along each axis", "take fewer frames or smaller sides")
        return latents


def check_frames(frames: int) -> None:
    """Raises UsageError for a chunk of another length than 4n + 1."""
    if frames < 1 or (frames - 1) % TEMPORAL_FACTOR:
        below = max(frames - 1, 0) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1
        fix = f"use {below} or {below + TEMPORAL_FACTOR}"
        raise UsageError("--frames", f"{frames} frames", "a first frame and whole fours: 1, 5, 9, ...", fix)


def tokens(architecture: VideoArchitecture, size: ChunkSize) -> int:
    """How many the transformer attends to at once. Raises UsageError, as `ChunkSize.latents`."""
    patch = setting("transformer", architecture.transformer, "patch_size")
    return math.prod(side // step for side, step in zip(size.latents(architecture), patch, strict=True))


def video_architecture(name: str | None, arch: str | None) -> VideoArchitecture | None:
    """The architecture of a video model, found as every command finds models, or of a known name.

    None where it is a picture model's, or where not one of both is given. Raises ModelError.
    """
    if arch is not None or name is None:
        return VIDEO_ARCHITECTURES.get(arch or "") if name is None else None
    place = find_model(name, with_weights=False, parts=VIDEO_PARTS)
    return _from_folder(place.path, place.name) if is_video_folder(place.path) else None


def _from_folder(folder: Path, name: str) -> VideoArchitecture:
    """A folder without `intsr_model.json`, as the authors' models are, has a name and Wan's own number of tokens."""
    configs = read_video_configs(folder)
    architecture = VideoArchitecture(name, configs["transformer"], configs["vae"])
    if not (folder / SPEC_NAME).is_file():
        return architecture
    settings = read_video_settings(folder)
    tokens = tokens_from_context(folder / settings.context) if settings.context else architecture.context_tokens
    return replace(architecture, name=settings.name, context_tokens=tokens, synthetic=settings.synthetic)


def costs_from_video_architecture(architecture: VideoArchitecture, size: ChunkSize) -> tuple[NetworkCost, ...]:
    """Count the transformer and the VAE (as encoder and decoder) for one chunk of output frames.

    The transformer's components are what a fixed timestep and text make constant, and the rest. The VAE runs a
    first frame and then fours, zeros in front of the first included. Raises ModelError where diffusers cannot build
    or run the configuration, UsageError for a chunk that the networks cannot take.
    """
    latent_size = size.latents(architecture)
    where = Path(architecture.name)
    transformer, vae = (empty_network(part, architecture.networks[part], where) for part in VIDEO_PARTS)
    channels = vae.config.z_dim
    latent = torch.empty((1, channels, *latent_size), device="meta")
    picture = torch.empty((1, 3, size.frames, size.height_px, size.width_px), device="meta")
    context = torch.empty((1, architecture.context_tokens, architecture.context_channels), device="meta")
    timestep = torch.zeros(1, device="meta")
    try:
        of_transformer = _count(transformer, lambda: transformer(latent, timestep, context))
        halves = (
            _count(vae, lambda: vae.encode(picture)).cost("encoder", _is_of_encoder),
            _count(vae, lambda: vae.decode(latent)).cost("decoder", lambda name: not _is_of_encoder(name)),
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        raise ModelError(architecture.name, f"cannot run this architecture ({str(error)[:300]})") from error
    parts = (
        of_transformer.cost("constant", _is_constant, attends=False),
        of_transformer.cost("one step", lambda name: not _is_constant(name)),
    )
    return (
        replace(total_from_costs(parts), name="transformer", components=parts),
        replace(total_from_costs(halves), name="vae", components=halves),
    )


def _is_constant(name: str) -> bool:
    return any(part in name for part in CONSTANT)


def _is_of_encoder(name: str) -> bool:
    return name.startswith(("encoder.", "quant_conv."))


@dataclass(frozen=True, slots=True)
class _Counts:
    """parameters: of each tensor. macs: of each layer, by its name and a dot. attention: of the whole pass."""

    parameters: Mapping[str, int]
    macs: Mapping[str, int]
    attention: int

    def cost(self, name: str, belongs: Callable[[str], bool], attends: bool = True) -> NetworkCost:
        """Of all that `belongs`; attends: whether attention's products do."""
        parameters, macs = (
            sum(count for key, count in counts.items() if belongs(key)) for counts in (self.parameters, self.macs)
        )
        return NetworkCost(name, parameters, macs, attention_macs=self.attention if attends else 0)


class _AttentionCounter(TorchFunctionMode):
    """Two products of every attention: queries times keys, weights times values."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            # diffusers names them in the transformer, and does not in the VAE.
            query, key = (named[name] if name in named else args[i] for i, name in enumerate(("query", "key")))
            self.macs += 2 * query.numel() * key.shape[-2]
        return func(*args, **named)


def _count(network: nn.Module, forward: Callable[[], Any]) -> _Counts:
    """Count what `forward` passes through: each output element takes as many as one output channel has weights."""
    macs: dict[str, int] = {}

    def counter(name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def add(layer: Any, _: Any, output: torch.Tensor) -> None:
            macs[name] = macs.get(name, 0) + output.numel() * layer.weight[0].numel()

        return add

    layers = {f"{name}.": layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    handles = [layer.register_forward_hook(counter(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), _AttentionCounter() as attention:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return _Counts({name: p.numel() for name, p in network.named_parameters()}, macs, attention.macs)
