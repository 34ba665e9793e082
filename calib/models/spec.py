"""What one-step inference needs to know beside the weights: `intsr_model.json` and the scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intsr.calib.models.families.architecture import SD21_SCHEDULER
from intsr.calib.models.schedule import alpha_bar_from_scheduler
from intsr.calib.models.tensor_files import as_model_error
from intsr.errors import ModelError
from intsr.types import ModelSpec, is_kind

SPEC_NAME = "intsr_model.json"
SPEC_SCHEMA_VERSION = 1
# Its keys, and the types that JSON may give them.
KINDS: dict[str, tuple[type, ...]] = {
    "schema_version": (int,),
    "name": (str,),
    "timestep": (int,),
    "upscale_factor": (int,),
    "resize_filter": (str,),
    "context": (str, type(None)),
    "licence": (str,),
    "synthetic": (bool,),
}
_WORDS: dict[type, str] = {
    int: "a whole number",
    str: "a string",
    type(None): "a string or null",
    bool: "true or false",
}
# May be left out, as it is in every file older than it is.
OPTIONAL_KEYS = {"synthetic"}
SPEC_KEYS = set(KINDS) - OPTIONAL_KEYS
# OSEDiff's and PassionSR's settings, for a model that carries no intsr_model.json (METHODS section 1).
SPEC_DEFAULTS: dict[str, Any] = {
    "timestep": 999,
    "upscale_factor": 4,
    "resize_filter": "lanczos",
    "licence": "",
    "context": None,
}


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


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """`intsr_model.json` of a folder, with every key; `name` and the defaults where there is none."""
    path = folder / SPEC_NAME
    if not path.exists():
        return {**SPEC_DEFAULTS, "name": name, "synthetic": False}
    settings = read_json(path)
    if settings.get("schema_version") != SPEC_SCHEMA_VERSION:
        raise ModelError(path, f"schema version {settings.get('schema_version')}", str(SPEC_SCHEMA_VERSION))
    unknown, missing = sorted(set(settings) - set(KINDS)), sorted(SPEC_KEYS - set(settings))
    if unknown or missing:
        raise ModelError(path, f"unknown keys {unknown}, missing keys {missing}", ", ".join(sorted(SPEC_KEYS)))
    for key, value in settings.items():
        if not is_kind(value, *KINDS[key]):
            raise ModelError(path, f"{key} {value!r}", _WORDS[KINDS[key][-1]])
    return {"synthetic": False, **settings}


def spec_from_settings(
    settings: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Path | None, where: Path
) -> ModelSpec:
    """unet, vae: the configurations. scheduler: its folder's JSON file; None for SD 2.1's. Raises ModelError."""
    config = SD21_SCHEDULER if scheduler is None else read_json(scheduler)
    alpha_bar = alpha_bar_from_scheduler(config, settings["timestep"], scheduler or where)
    with as_model_error(where):
        latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unet_factor = 2 ** (len(unet["block_out_channels"]) - 1)
        return ModelSpec(
            name=settings["name"],
            timestep=settings["timestep"],
            alpha_bar=alpha_bar,
            latent_scaling_factor=vae["scaling_factor"],
            upscale_factor=settings["upscale_factor"],
            resize_filter=settings["resize_filter"],
            size_multiple_px=latent_factor * unet_factor,
            licence=settings["licence"],
            synthetic=bool(settings["synthetic"]),
        )
