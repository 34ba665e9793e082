"""Load a one-step model: diffusers' folder format, and what one-step inference needs beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import intsr
from intsr.errors import ModelError
from intsr.files import sha256_from_path
from intsr.types import ModelSpec

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

DEMO_MODEL = "demo"
SPEC_NAME = "intsr_model.json"
SPEC_SCHEMA_VERSION = 1
SPEC_KEYS = {"schema_version", "name", "timestep", "upscale_factor", "resize_filter", "context", "licence"}
# OSEDiff's and PassionSR's settings, for a folder that carries no intsr_model.json (METHODS section 1).
SPEC_DEFAULTS: dict[str, Any] = {"timestep": 999, "upscale_factor": 4, "resize_filter": "lanczos", "licence": ""}
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
# The VAE of SD 2.1 was saved when diffusers' attention still had these names.
DEPRECATED_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True, slots=True)
class SRModel:
    """A one-step model in float32, evaluation mode, gradients off.

    context: (1, tokens, channels) float32, the constant prompt context. digest: SHA-256 of configuration and
    weights, which a calibration is bound to.
    """

    spec: ModelSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    context: torch.Tensor
    digest: str


def model_folder(name: str) -> Path:
    """The folder of a model: `demo` is the bundled one. Raises ModelError where there is none."""
    folder = Path(intsr.__file__).parent / "models" / DEMO_MODEL if name == DEMO_MODEL else Path(name)
    if not folder.is_dir():
        raise ModelError(name, "no such folder", "a model folder with unet/ and vae/, or the word demo")
    return folder


def load_model(name: str, context: Path | None = None) -> SRModel:
    """Load a folder with `unet/`, `vae/`, `scheduler/` and, optionally, `intsr_model.json`.

    context: safetensors file with the tensor `context`; by default the one that the folder names, else the empty
    prompt through the folder's own text encoder. Raises ModelError for whatever is missing, broken or not finite.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = model_folder(name)
    settings = _read_settings(folder)
    unet_config, vae_config = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    unet = _load_network(UNet2DConditionModel, unet_config, folder / "unet")
    vae = _load_network(AutoencoderKL, vae_config, folder / "vae")
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ModelError(folder / "vae", "no quant_conv", "an AutoencoderKL with quant_conv and post_quant_conv")
    spec = _make_spec(folder, settings, unet, vae)
    tensor = _load_context(folder, context, settings)
    width = unet.config.cross_attention_dim
    if tensor.shape[-1] != width:
        raise ModelError(
            context or folder,
            f"context of width {tensor.shape[-1]}",
            f"{width}, as the UNet's cross-attention",
        )
    return SRModel(spec, unet, vae, tensor, _digest(folder, tensor, spec))


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelError where `path` is missing or is not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(path, "no such file", "diffusers' folder format: unet/, vae/, scheduler/") from error
    except ValueError as error:
        raise ModelError(path, f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(path, f"a JSON {type(values).__name__}", "an object")
    return values


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SPEC_NAME
    if not path.exists():
        return {**SPEC_DEFAULTS, "name": folder.resolve().name, "context": None}
    settings = read_json(path)
    if settings.get("schema_version") != SPEC_SCHEMA_VERSION:
        raise ModelError(path, f"schema version {settings.get('schema_version')}", str(SPEC_SCHEMA_VERSION))
    unknown, missing = sorted(set(settings) - SPEC_KEYS), sorted(SPEC_KEYS - set(settings))
    if unknown or missing:
        raise ModelError(path, f"unknown keys {unknown}, missing keys {missing}", ", ".join(sorted(SPEC_KEYS)))
    return settings


@contextmanager
def _as_model_error(where: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ModelError(where, f"no {error}") from error
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(where, str(error)[:400]) from error


def _load_network(cls: Any, config: dict[str, Any], folder: Path) -> Any:
    """Instantiate without memory, then take the file's own (mapped) tensors: never two copies."""
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(folder, "no weights", " or ".join(WEIGHT_FILES))
    with _as_model_error(path):
        with torch.device("meta"):
            network = cls.from_config(config)
        weights = {_current_name(key): value.float() for key, value in load_file(path).items()}
        expected = {key: value.shape for key, value in network.state_dict().items()}
        for key, value in weights.items():
            # The 1x1 convolutions of ldm's attention are linears here.
            if key in expected and value.shape != expected[key] and value.shape[:2] == expected[key]:
                weights[key] = value.reshape(expected[key])
        network.load_state_dict(weights, strict=True, assign=True)
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(path, f"NaN or infinity in {broken[0]} and {len(broken) - 1} more", "finite weights")
    return network.eval().requires_grad_(False)


def _current_name(key: str) -> str:
    if ".attentions." in key:
        for old, new in DEPRECATED_ATTENTION.items():
            key = key.replace(old, new)
    return key


def _make_spec(folder: Path, settings: dict[str, Any], unet: UNet2DConditionModel, vae: AutoencoderKL) -> ModelSpec:
    latent_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    unet_factor = 2 ** (len(unet.config.block_out_channels) - 1)
    alpha_bar = _alpha_bar(folder / "scheduler" / "scheduler_config.json", settings["timestep"])
    with _as_model_error(folder):
        return ModelSpec(
            name=settings["name"],
            timestep=settings["timestep"],
            alpha_bar=alpha_bar,
            latent_scaling_factor=vae.config.scaling_factor,
            upscale_factor=settings["upscale_factor"],
            resize_filter=settings["resize_filter"],
            size_multiple_px=latent_factor * unet_factor,
            licence=settings["licence"],
        )


def _alpha_bar(path: Path, timestep: int) -> float:
    """Cumulative product of 1 - beta up to and including `timestep`, in float64."""
    config = read_json(path)
    schedule, prediction = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if schedule not in ("scaled_linear", "linear"):
        raise ModelError(path, f"beta_schedule {schedule!r}", "scaled_linear or linear")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(path, f"prediction_type {prediction!r}", "epsilon")
    other = [key for key in ("trained_betas", "rescale_betas_zero_snr") if config.get(key)]
    if other:
        raise ModelError(path, f"{other[0]} is set", "betas that beta_start and beta_end give")
    power = 2 if schedule == "scaled_linear" else 1
    with _as_model_error(path):
        steps = int(config["num_train_timesteps"])
        if not isinstance(timestep, int) or not 0 <= timestep < steps:
            raise ModelError(path, f"timestep {timestep!r}", f"0 to {steps - 1}")
        first, last = (float(config[key]) ** (1 / power) for key in ("beta_start", "beta_end"))
        betas = np.linspace(first, last, steps) ** power
    return float(np.prod(1 - betas[: timestep + 1]))


def _load_context(folder: Path, context: Path | None, settings: dict[str, Any]) -> torch.Tensor:
    path = context or (folder / settings["context"] if settings["context"] else None)
    if path is None:
        return _empty_prompt_context(folder)
    with _as_model_error(path):
        tensor = load_file(path)["context"].float()
    if tensor.ndim != 3 or tensor.shape[0] != 1 or not torch.isfinite(tensor).all():
        raise ModelError(
            path, f"context of shape {tuple(tensor.shape)}", "finite values, shape (1, tokens, channels)"
        )
    return tensor


def _empty_prompt_context(folder: Path) -> torch.Tensor:
    """The empty prompt through the folder's own CLIP text encoder, as OSEDiff's kin do."""
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        raise ModelError(
            folder, "no prompt context", "text_encoder/ and tokenizer/", "give one with --context FILE.safetensors"
        )
    from transformers import CLIPTextModel, CLIPTokenizer

    with _as_model_error(folder / "text_encoder"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
        tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        with torch.no_grad():
            return encoder(tokens.input_ids)[0].float()


def _digest(folder: Path, context: torch.Tensor, spec: ModelSpec) -> str:
    digest = hashlib.sha256(repr(spec).encode())
    digest.update(context.numpy().tobytes())
    for part in ("unet", "vae"):
        for path in sorted((folder / part).glob("*")):
            if path.suffix in (".json", ".safetensors"):
                digest.update(f"{part}/{path.name}:{sha256_from_path(path)}".encode())
    return digest.hexdigest()
