"""Everything that one-step inference needs beside the weights: `intsr_model.json` and the scheduler's part.

    epsilon      x0 = (z - sqrt(1 - alpha_bar) e) / sqrt(alpha_bar)
    v            x0 = sqrt(alpha_bar) z - sqrt(1 - alpha_bar) e
    sample       x0 = e
    difference   x0 = z - e, of models that no scheduler describes

What else diffusers' schedulers can do to x0 is refused: clipping, thresholding, other betas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intsr.calib.models.tensor_files import as_model_error
from intsr.errors import ModelError
from intsr.json_files import read_json as decode_file
from intsr.types import ModelSpec, PictureSpec, is_kind

SPEC_NAME = "intsr_model.json"
SPEC_SCHEMA_VERSION = 1
# diffusers' schedulers whose x0 is one of the first three. The first clip it to [-1, 1] unless their configuration
# says otherwise.
CLIPPING = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")
PLAIN = (
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)
# prediction_type -> rule. The models of known families all have the first, whatever their own rule is.
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
# Off, null or absent in SD 2.1's, whatever the class.
OTHER_BETAS = ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas")
NUMBERS: dict[str, tuple[type, ...]] = {
    "num_train_timesteps": (int,),
    "beta_start": (int, float),
    "beta_end": (int, float),
}


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
    # Of `intsr.types.X0_RULES`; null: what the scheduler predicts.
    x0_rule: str | None = None
    # Of `families.published.FAMILIES`; "" for none that is known.
    family: str = ""
    # What the context was made of, where a file holds it.
    prompt: str | None = None


def default_settings(name: str) -> ModelSettings:
    """OSEDiff's and PassionSR's, for a model that carries no `intsr_model.json`."""
    return ModelSettings(SPEC_SCHEMA_VERSION, name, 999, 4, "lanczos", None, "")


def diffusion_spec(spec: PictureSpec) -> ModelSpec:
    """Return the spec of a model with a timestep and latents. Raises ModelError for one of another family."""
    if not isinstance(spec, ModelSpec):
        raise ModelError(spec.name, "a model without timestep and latents", "one of Stable Diffusion 2.1's kind")
    return spec


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
    settings: ModelSettings,
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
    where: Path,
) -> ModelSpec:
    """configs: of `unet` and `vae`. scheduler: its own, of `where`. Raises ModelError."""
    unet, vae = configs["unet"], configs["vae"]
    alpha_bar = alpha_bar_from_scheduler(scheduler, settings.timestep, where)
    x0_rule = settings.x0_rule or x0_rule_from_scheduler(scheduler, where)
    # The scheduler is checked by now.
    with as_model_error(Path(settings.name)):
        latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unet_factor = 2 ** (len(unet["block_out_channels"]) - 1)
        return ModelSpec(
            name=settings.name,
            timestep=settings.timestep,
            alpha_bar=alpha_bar,
            # AutoencoderKL's own value where a configuration is too old to have it.
            latent_scaling_factor=vae.get("scaling_factor", 0.18215),
            upscale_factor=settings.upscale_factor,
            resize_filter=settings.resize_filter,
            size_multiple_px=latent_factor * unet_factor,
            licence=settings.licence,
            synthetic=settings.synthetic,
            x0_rule=x0_rule,
            prompt=settings.prompt,
        )


def alpha_bar_from_scheduler(config: Mapping[str, Any], timestep: Any, where: Path) -> float:
    """Cumulative product of 1 - beta up to and including `timestep`, in float64. config: a scheduler's, as diffusers
    saves it. Raises ModelError for one that does more, or something else.
    """
    _check_x0(config, where)
    schedule = config.get("beta_schedule")
    if schedule not in ("scaled_linear", "linear"):
        raise ModelError(where, f"beta_schedule {schedule!r}", "scaled_linear or linear")
    other = [key for key in OTHER_BETAS if config.get(key)]
    if other:
        raise ModelError(where, f"{other[0]} is set", "betas that beta_start and beta_end give")
    power = 2 if schedule == "scaled_linear" else 1
    with as_model_error(where):
        for key, kinds in NUMBERS.items():
            if not is_kind(config[key], *kinds):
                raise TypeError(f"{key} is {config[key]!r}, not a {'whole ' * (kinds == (int,))}number")
        steps = config["num_train_timesteps"]
        if not is_kind(timestep, int) or not 0 <= timestep < steps:
            raise ModelError(where, f"timestep {timestep!r}", f"0 to {steps - 1}")
        ends = [config[key] for key in ("beta_start", "beta_end")]
        if not all(0 < beta < 1 for beta in ends):
            raise ModelError(where, f"betas from {ends[0]} to {ends[1]}", "between 0 and 1")
        first, last = (beta ** (1 / power) for beta in ends)
        betas = np.linspace(first, last, steps) ** power
    return float(np.prod(1 - betas[: timestep + 1]))


def x0_rule_from_scheduler(config: Mapping[str, Any], where: Path) -> str:
    """Return the rule that a scheduler's prediction_type stands for. Raises ModelError for any other."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ModelError(where, f"prediction_type {prediction!r}", " or ".join(PREDICTIONS))
    return PREDICTIONS[prediction]


def _check_x0(config: Mapping[str, Any], where: Path) -> None:
    """Raises ModelError where x0 is more than a formula."""
    # Without a name it is what OSEDiff's and PassionSR's code loads it as.
    name = config.get("_class_name", CLIPPING[0])
    if name not in CLIPPING + PLAIN:
        raise ModelError(where, f"class {name}", f"{', '.join(CLIPPING[::2])}, {PLAIN[0]} or their kin")
    fix = "where the model's own code leaves x0 as it is, write false there"
    for key, default in (("clip_sample", name in CLIPPING), ("thresholding", False)):
        value = config.get(key, default)
        if value:
            got = f"{key} {value!r}" if key in config else f"no {key}, which for a {name} means true"
            raise ModelError(where, got, "false: x0 that nothing clips", fix)
