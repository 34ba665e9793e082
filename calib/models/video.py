"""A one-step video model: found and checked first, its networks loaded then, one or both.

As `open` has it for picture models; the digest is made of the same kind of facts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from intsr.calib.models.digest import WEIGHT_SUFFIXES, context_fact, file_facts
from intsr.calib.models.families.wan import VIDEO_PARTS, is_integer_video_site, setting
from intsr.calib.models.find import find_model
from intsr.calib.models.modules import copy_sharing_weights, video_layers_of
from intsr.calib.models.prompt import CONTEXT_FIX, read_context
from intsr.calib.models.video_spec import VideoSpec, read_video_settings, video_spec
from intsr.calib.models.weights import (
    NetworkSource,
    is_video_folder,
    load_network,
    read_video_configs,
    sources_of_folder,
)
from intsr.errors import ModelError

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from intsr.kernels.layer_algebra import Layer


@dataclass(frozen=True, slots=True)
class VideoModel:
    """A one-step video model in float32, evaluation mode, gradients off.

    transformer, vae: None where only the other one was loaded. context: (1, tokens, text channels) float32, the
    text encoder's answer to the constant prompt. digest: SHA-256 of configuration and weights.
    """

    spec: VideoSpec
    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    context: torch.Tensor
    digest: str

    def load(self, *parts: str) -> VideoModel:
        """Both networks, or only those named, as copies that share the weights: their modules may be changed."""
        copies: dict[str, Any] = dict.fromkeys(VIDEO_PARTS)
        for part in parts or VIDEO_PARTS:
            copies[part] = copy_sharing_weights(getattr(self, part))
        return replace(self, **copies)


@dataclass(frozen=True, slots=True)
class VideoModelSource:
    """A video model that was found and checked; no weights are held. networks: `transformer` and `vae`."""

    spec: VideoSpec
    context: torch.Tensor
    digest: str
    networks: Mapping[str, NetworkSource]

    def load(self, *parts: str) -> VideoModel:
        """Both networks, or only those named. Raises ModelError."""
        loaded: dict[str, Any] = dict.fromkeys(VIDEO_PARTS)
        for part in parts or VIDEO_PARTS:
            loaded[part] = load_network(self.networks[part])
        return VideoModel(self.spec, loaded["transformer"], loaded["vae"], self.context, self.digest)


def load_video_model(name: str, context: Path | None = None) -> VideoModel:
    """`open_video_model`, and both networks. Raises ModelError for whatever is missing, broken or not finite."""
    return open_video_model(name, context).load()


def open_video_model(name: str, context: Path | None = None) -> VideoModelSource:
    """Find a video model by name and check all but its weights.

    name: a folder with `transformer/`, `vae/`, `scheduler/` and `intsr_model.json`, or `owner/name@revision` of the
    hub. context: safetensors file with the tensor `context`; by default the one that the model names. Raises
    ModelError.
    """
    place = find_model(name, needs_text=False, parts=VIDEO_PARTS)
    if place.is_file or not is_video_folder(place.path):
        raise ModelError(place.path, "no video model", "a folder with transformer/ and vae/ in diffusers' format")
    folder = place.path
    configs = read_video_configs(folder)
    settings = read_video_settings(folder)
    spec = video_spec(settings, configs, folder)
    networks = sources_of_folder(folder, configs, VIDEO_PARTS)
    named = context or (folder / settings.context if settings.context else None)
    if named is None:
        raise ModelError(folder, "no prompt context (text encoders of video models are not run)", fix=CONTEXT_FIX)
    tensor = read_context(named)
    width = setting("transformer", configs["transformer"], "text_dim")
    if tensor.shape[-1] != width:
        raise ModelError(named, f"context of width {tensor.shape[-1]}", f"{width}, the transformer's text_dim")
    facts = [spec.timestep, spec.sigma, spec.upscale_factor, spec.resize_filter, spec.size_multiple_px]
    files = file_facts(folder, VIDEO_PARTS, WEIGHT_SUFFIXES)
    digest = hashlib.sha256(json.dumps([facts, [context_fact(tensor)], files]).encode()).hexdigest()
    return VideoModelSource(spec, tensor, digest, networks)


def integer_video_sites(model: VideoModel, parts: tuple[str, ...]) -> dict[str, Layer]:
    """Return the layers of the parts that engines run on integers, by site, in module order."""
    return {
        site: layer
        for part in parts
        for name, layer in video_layers_of(getattr(model, part)).items()
        if is_integer_video_site(site := f"{part}.{name}")
    }
