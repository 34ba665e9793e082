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
from intsr.calib.models.families.adcsr import LICENCE, AdcSRSpec, is_adcsr_folder
from intsr.calib.models.families.adcsr_files import files_of_folder, read_architecture
from intsr.calib.models.families.architecture import SD21_SCHEDULER
from intsr.calib.models.families.family import Family, Lora
from intsr.calib.models.families.published import FAMILIES, read_lora
from intsr.calib.models.families.sd21_ldm import check_nothing_else, configs_from_ldm, without_wrapper
from intsr.calib.models.families.supported import CONTEXT_CHANNELS, check_channels
from intsr.calib.models.find import Place, find_model
from intsr.calib.models.modules import copy_sharing_weights
from intsr.calib.models.prompt import context_from_folder, context_from_ldm, read_context
from intsr.calib.models.spec import (
    PREDICTIONS,
    SPEC_NAME,
    ModelSettings,
    default_settings,
    diffusion_spec,
    read_json,
    read_settings,
    spec_from_settings,
)
from intsr.calib.models.tensor_files import read_checkpoint
from intsr.calib.models.weights import (
    PARTS,
    NetworkSource,
    load_network,
    read_configs,
    sources_of_adcsr,
    sources_of_folder,
    sources_of_ldm,
)
from intsr.errors import ModelError
from intsr.files import sha256_from_path
from intsr.types import SYNTHETIC_NOTE, USUAL_DEFAULTS, ModelSpec, PictureSpec, WeightOptions

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True, slots=True)
class SRModel:
    """A one-step model in float32, evaluation mode, gradients off.

    unet, vae: None where only the other one was loaded; of AdcSR, modules of its own. context: (1, tokens, channels)
    float32, the constant prompt context, nothing where the model has none. digest: SHA-256 of configuration and
    weights, which a calibration is bound to.
    """

    spec: PictureSpec
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

    spec: PictureSpec
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


def load_model(name: str, context: Path | None = None, lora: Path | None = None, **others: Any) -> SRModel:
    """`open_model`, and both networks. Raises ModelError for whatever is missing, broken or not finite."""
    return open_model(name, context, lora, **others).load()


def open_model(
    name: str,
    context: Path | None = None,
    lora: Path | None = None,
    *,
    prompt: str | None = None,
    pisa_weights: tuple[float, float] | None = None,
) -> ModelSource:
    """Find a model by name and check all but its weights.

    name: a folder with `unet/`, `vae/` and, optionally, `scheduler/` and `intsr_model.json`; a single SD 2.1 file in
    ldm's format; `owner/name@revision` of the hub; or `demo`. context: safetensors file with the tensor `context`; by
    default the one that the model names, else `prompt`, or nothing, through the model's own text encoder. lora: a
    family's file or folder, merged into the weights; the model is then of that family. pisa_weights: of PiSA-SR's two
    LoRAs, (1, 1) by default. Or a folder with AdcSR's two files, which takes none of these. Raises ModelError,
    UsageError.
    """
    place = find_model(name, needs_text=context is None, for_prompt=prompt is not None)
    if is_adcsr_folder(place.path):
        WeightOptions(context, lora, prompt, pisa_weights).check_none("AdcSR")
        return _open_adcsr(place)
    adapter = read_lora(lora, pisa_weights) if lora is not None else None
    opened = _open_file if place.is_file else _open_folder
    source = opened(place, context, prompt, adapter.family if adapter else None)
    width = source.networks["unet"].config.get("cross_attention_dim", CONTEXT_CHANNELS)
    if source.context.shape[-1] != width:
        got = f"context of width {source.context.shape[-1]}"
        raise ModelError(context or place.path, got, f"{width}, as the UNet's cross-attention")
    return source if adapter is None else _with_lora(source, adapter)


def _with_lora(source: ModelSource, lora: Lora) -> ModelSource:
    spec = diffusion_spec(source.spec)
    name = f"{spec.name}+{lora.path.absolute().stem}" + (f"({lora.variant})" if lora.variant else "")
    spec = replace(spec, name=name, synthetic=spec.synthetic or lora.synthetic)
    text = f"{source.digest} lora:{_lora_digest(lora.path)}" + (f" {lora.variant}" if lora.variant else "")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return replace(source, spec=spec, digest=digest, lora=lora, notes=lora.notes)


def _lora_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its adapters' files."""
    if path.is_file():
        return sha256_from_path(path)
    folders = sorted(folder.name for folder in path.iterdir())
    return hashlib.sha256(json.dumps(file_facts(path, folders, WEIGHT_SUFFIXES)).encode()).hexdigest()


def _open_folder(place: Place, context: Path | None, prompt: str | None, family: Family | None) -> ModelSource:
    folder = place.path
    configs = read_configs(folder)
    settings = _of_family(read_settings(folder, place.name), family, folder)
    networks = sources_of_folder(folder, configs)
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    # Some copies leave it out; every SD 2.1 has the same.
    scheduler = read_json(scheduler_file) if scheduler_file.parent.is_dir() else SD21_SCHEDULER
    spec = _spec(settings, configs, scheduler, scheduler_file)
    named = context or (folder / settings.context if settings.context and prompt is None else None)
    tensor = read_context(named) if named else context_from_folder(folder, prompt or "")
    told = (None if context else settings.prompt) if named else prompt or ""
    of_context = [context_fact(tensor)] if named else file_facts(folder, TEXT_FOLDERS, TEXT_SUFFIXES)
    of_context += [f"prompt:{prompt}"] if prompt else []
    digest = _model_digest(spec, of_context, file_facts(folder, PARTS, WEIGHT_SUFFIXES))
    return ModelSource(replace(spec, prompt=told), tensor, digest, networks, scheduler)


def _open_adcsr(place: Place) -> ModelSource:
    architecture = read_architecture(place.path, place.name)
    synthetic, licence = architecture.synthetic, SYNTHETIC_NOTE if architecture.synthetic else LICENCE
    spec = AdcSRSpec(place.name, architecture.size_multiple_px, licence, synthetic)
    networks = sources_of_adcsr(place.path, architecture.networks)
    hashes = [sha256_from_path(path) for path in files_of_folder(place.path)]
    digest = hashlib.sha256(json.dumps([spec.defaults.family, *hashes]).encode()).hexdigest()
    return ModelSource(spec, torch.empty(1, 0, 0), digest, networks, {})


def _open_file(place: Place, context: Path | None, prompt: str | None, family: Family | None) -> ModelSource:
    if prompt is not None:
        fix = "give the model as a folder with text_encoder/ and tokenizer/"
        raise ModelError(place.path, "a single file, which holds no tokenizer for --prompt", fix=fix)
    tensors = without_wrapper(read_checkpoint(place.path).tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    unet, vae = configs_from_ldm(shapes, place.path)
    check_channels(unet, vae, place.path)
    check_nothing_else(list(tensors), place.path)
    networks = sources_of_ldm(place.path, (unet, vae))
    settings = _of_family(default_settings(place.name), family, place.path)
    spec = _spec(settings, {"unet": unet, "vae": vae}, SD21_SCHEDULER, place.path)
    tensor = read_context(context) if context else context_from_ldm(tensors, place.path)
    # A context that no file gave was made by an encoder in this very file.
    of_context = [context_fact(tensor)] if context else []
    digest = _model_digest(spec, of_context, [f"file:{sha256_from_path(place.path)}"])
    return ModelSource(replace(spec, prompt=None if context else ""), tensor, digest, networks, SD21_SCHEDULER)


def _of_family(settings: ModelSettings, family: Family | None, where: Path) -> ModelSettings:
    """What a folder says, and where a LoRA is merged into it, what its family says. Raises ModelError."""
    if settings.family and settings.family not in FAMILIES:
        raise ModelError(where / SPEC_NAME, f"family {settings.family!r}", f"one of {', '.join(FAMILIES)}")
    if family is None:
        return settings
    if settings.family:
        got = f"{family.title}'s LoRA for a model that is {FAMILIES[settings.family].title}'s already"
        raise ModelError(where, got, f"{family.base}, which nothing was merged into")
    return replace(
        settings,
        timestep=family.timestep,
        x0_rule=family.x0_rule,
        resize_filter=family.resize_filter,
        family=family.name,
        licence="; ".join(filter(None, (family.licence, settings.licence))),
    )


def _spec(
    settings: ModelSettings,
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
    where: Path,
) -> ModelSpec:
    """`spec_from_settings`, for the settings' family. Raises ModelError."""
    family = FAMILIES.get(settings.family)
    predicted = scheduler.get("prediction_type", "epsilon")
    if family is not None and PREDICTIONS.get(predicted) != "epsilon":
        got = f"prediction_type {predicted!r}, as SD 2.1 for 768 pixels has"
        raise ModelError(where, got, f"epsilon: {family.title} is made for {family.base}")
    defaults = family.defaults if family else USUAL_DEFAULTS
    return replace(spec_from_settings(settings, configs, scheduler, where), defaults=defaults)


def _model_digest(spec: ModelSpec, of_context: Sequence[str], of_weights: Sequence[str]) -> str:
    """of_context: `context_fact`, or `file_facts` of what makes it; nothing where the weights' file makes it."""
    # A product of a thousand factors: not to the last bit, which libraries may round differently.
    facts: list[Any] = [spec.timestep, f"{spec.alpha_bar:.12e}", float(spec.latent_scaling_factor)]
    facts += [spec.upscale_factor, spec.resize_filter, spec.size_multiple_px]
    # There was one rule at first.
    facts += [spec.x0_rule] if spec.x0_rule != "epsilon" else []
    return hashlib.sha256(json.dumps([facts, list(of_context), list(of_weights)]).encode()).hexdigest()
