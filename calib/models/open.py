"""A one-step model: found and checked first, its networks loaded then, one or both.

The digest that a calibration is bound to is SHA-256 over the files and settings that decide what a model computes:
no name or place, and nothing computed. A context that the text encoder makes differs in its last bits from processor
to processor, so the encoder's files stand for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.models.digest import TEXT_FOLDERS, TEXT_SUFFIXES, WEIGHT_SUFFIXES, context_fact, file_facts
from intsr.calib.models.families.architecture import SD21_SCHEDULER
from intsr.calib.models.families.sd21_ldm import check_nothing_else, configs_from_ldm, without_wrapper
from intsr.calib.models.families.supported import CONTEXT_CHANNELS, check_channels
from intsr.calib.models.find import Place, find_model
from intsr.calib.models.lora import Lora, read_lora
from intsr.calib.models.modules import copy_sharing_weights
from intsr.calib.models.prompt import context_from_folder, context_from_ldm, read_context
from intsr.calib.models.spec import default_settings, read_json, read_settings, spec_from_settings
from intsr.calib.models.tensor_files import read_checkpoint
from intsr.calib.models.weights import PARTS, NetworkSource, load_network, read_configs, weights_file
from intsr.errors import ModelError
from intsr.files import sha256_from_path
from intsr.types import ModelSpec

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True, slots=True)
class SRModel:
    """A one-step model in float32, evaluation mode, gradients off.

    unet, vae: None where only the other one was loaded. context: (1, tokens, channels) float32, the constant prompt
    context. digest: SHA-256 of configuration and weights, which a calibration is bound to.
    """

    spec: ModelSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    context: torch.Tensor
    digest: str

    @property
    def modules(self) -> nn.ModuleDict:
        """The networks that are there as one module, in which sites are names."""
        return nn.ModuleDict({part: getattr(self, part) for part in PARTS if getattr(self, part) is not None})

    def load(self, *parts: str) -> SRModel:
        """Both networks, or only those named, as copies that share the weights: their modules may be changed."""
        copies: dict[str, Any] = dict.fromkeys(PARTS)
        for part in parts or PARTS:
            copies[part] = copy_sharing_weights(getattr(self, part))
        return replace(self, **copies)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found and checked; no weights are held. The rest as in SRModel.

    networks: `unet` and `vae`. scheduler: its configuration. lora: merged into what
    is loaded. notes: what a user should know of it.
    """

    spec: ModelSpec
    context: torch.Tensor
    digest: str
    networks: Mapping[str, NetworkSource]
    scheduler: Mapping[str, Any]
    lora: Lora | None = None
    notes: tuple[str, ...] = ()

    def load(self, *parts: str) -> SRModel:
        """Both networks, or only those named. Raises ModelError."""
        loaded: dict[str, Any] = dict.fromkeys(PARTS)
        for part in parts or PARTS:
            loaded[part] = load_network(self.networks[part], self.lora)
        return SRModel(self.spec, loaded["unet"], loaded["vae"], self.context, self.digest)


def load_model(name: str, context: Path | None = None, lora: Path | None = None) -> SRModel:
    """`open_model`, and both networks. Raises ModelError for whatever is missing, broken or not finite."""
    return open_model(name, context, lora).load()


def open_model(name: str, context: Path | None = None, lora: Path | None = None) -> ModelSource:
    """Find a model by name and check all but its weights.

    name: a folder with `unet/`, `vae/`, `scheduler/` and, optionally, `intsr_model.json`; a single SD 2.1 file in
    ldm's format; `owner/name@revision` of the hub; or `demo`. context: safetensors file with the tensor `context`; by
    default the one that the model names, else the empty prompt through the model's own text encoder. lora:
    OSEDiff's, merged into the weights. Raises ModelError.
    """
    place = find_model(name, needs_text=context is None)
    adapter = read_lora(lora) if lora is not None else None
    source = _open_file(place, context) if place.is_file else _open_folder(place, context)
    width = source.networks["unet"].config.get("cross_attention_dim", CONTEXT_CHANNELS)
    if source.context.shape[-1] != width:
        got = f"context of width {source.context.shape[-1]}"
        raise ModelError(context or place.path, got, f"{width}, as the UNet's cross-attention")
    if adapter is None:
        return source
    spec = replace(source.spec, name=f"{source.spec.name}+{adapter.path.stem}")
    digest = hashlib.sha256(f"{source.digest} lora:{sha256_from_path(adapter.path)}".encode()).hexdigest()
    return replace(source, spec=spec, digest=digest, lora=adapter, notes=adapter.notes)


def _open_folder(place: Place, context: Path | None) -> ModelSource:
    folder = place.path
    configs = read_configs(folder)
    settings = read_settings(folder, place.name)
    networks = {part: NetworkSource(part, configs[part], weights_file(folder / part)) for part in PARTS}
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json(scheduler_file)
    # AutoencoderKL's own value where a configuration is too old to have it.
    vae = {"scaling_factor": 0.18215, **configs["vae"]}
    spec = spec_from_settings(settings, configs["unet"], vae, scheduler, scheduler_file)
    named = context or (folder / settings.context if settings.context else None)
    tensor = read_context(named) if named else context_from_folder(folder)
    of_context = [context_fact(tensor)] if named else file_facts(folder, TEXT_FOLDERS, TEXT_SUFFIXES)
    digest = _model_digest(spec, of_context, file_facts(folder, PARTS, WEIGHT_SUFFIXES))
    return ModelSource(spec, tensor, digest, networks, scheduler)


def _open_file(place: Place, context: Path | None) -> ModelSource:
    tensors = without_wrapper(read_checkpoint(place.path).tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    unet, vae = configs_from_ldm(shapes, place.path)
    check_channels(unet, vae, place.path)
    check_nothing_else(list(tensors), place.path)
    networks = {
        part: NetworkSource(part, config, place.path, is_ldm=True)
        for part, config in zip(PARTS, (unet, vae), strict=True)
    }
    spec = spec_from_settings(default_settings(place.name), unet, vae, SD21_SCHEDULER, place.path)
    tensor = read_context(context) if context else context_from_ldm(tensors, place.path)
    # A context that no file gave was made by an encoder in this very file.
    of_context = [context_fact(tensor)] if context else []
    digest = _model_digest(spec, of_context, [f"file:{sha256_from_path(place.path)}"])
    return ModelSource(spec, tensor, digest, networks, SD21_SCHEDULER)


def _model_digest(spec: ModelSpec, of_context: Sequence[str], of_weights: Sequence[str]) -> str:
    """of_context: `context_fact`, or `file_facts` of what makes it; nothing where the weights' file makes it."""
    # A product of a thousand factors: not to the last bit, which libraries may round differently.
    facts = [spec.timestep, f"{spec.alpha_bar:.12e}", float(spec.latent_scaling_factor)]
    facts += [spec.upscale_factor, spec.resize_filter, spec.size_multiple_px]
    return hashlib.sha256(json.dumps([facts, list(of_context), list(of_weights)]).encode()).hexdigest()
