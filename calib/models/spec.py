"""Everything that one-step inference needs beside the weights: `intsr_model.json` and the scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intsr.calib.models.families.architecture import SD21_SCHEDULER
from intsr.calib.models.schedule import alpha_bar_from_scheduler
from intsr.calib.models.tensor_files import as_model_error
from intsr.errors import ModelError
from intsr.json_files import read_json as decode_file
from intsr.types import ModelSpec

SPEC_NAME = "intsr_model.json"
SPEC_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`intsr_model.json`."""

    schema_version: int
    name: str
    timestep: int
    upscale_factor: int
    resize_filter: str
    # A safetensors file beside it; null: the text encoder makes the context.
    context: str | None
    licence: str
    # Whether the weights are random.
    synthetic: bool = False


def default_settings(name: str) -> ModelSettings:
    """OSEDiff's and PassionSR's, for a model that carries no `intsr_model.json`."""
    return ModelSettings(SPEC_SCHEMA_VERSION, name, 999, 4, "lanczos", None, "")


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


def read_settings(folder: Path, name: str) -> ModelSettings:
    """Read `intsr_model.json` of a folder; `name` and the defaults where there is none. Raises ModelError."""
    path = folder / SPEC_NAME
    if not path.exists():
        return default_settings(name)
    return decode_file(path, ModelSettings, error=ModelError, version=SPEC_SCHEMA_VERSION)


def spec_from_settings(
    settings: ModelSettings, unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Path | None, where: Path
) -> ModelSpec:
    """unet, vae: the configurations. scheduler: its folder's JSON file; None for SD 2.1's. Raises ModelError."""
    config = SD21_SCHEDULER if scheduler is None else read_json(scheduler)
    alpha_bar = alpha_bar_from_scheduler(config, settings.timestep, scheduler or where)
    with as_model_error(where):
        latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unet_factor = 2 ** (len(unet["block_out_channels"]) - 1)
        return ModelSpec(
            name=settings.name,
            timestep=settings.timestep,
            alpha_bar=alpha_bar,
            latent_scaling_factor=vae["scaling_factor"],
            upscale_factor=settings.upscale_factor,
            resize_filter=settings.resize_filter,
            size_multiple_px=latent_factor * unet_factor,
            licence=settings.licence,
            synthetic=settings.synthetic,
        )
