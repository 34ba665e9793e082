"""Everything that one-step inference of a video model needs beside the weights: `intsr_model.json` and the scheduler.

    x0 = z - sigma v

z are the low-resolution film's latents, v what the transformer makes of them at `timestep`. A flow-matching scheduler
of diffusers shows the transformer timestep = 1000 sigma, its shift included, so that the shift decides which
timesteps there are and not what sigma is at one. UniPC cuts a timestep's fraction off: such a sigma is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intsr.calib.models.families.wan import setting, spatial_factor
from intsr.calib.models.spec import SPEC_NAME, SPEC_SCHEMA_VERSION, read_json
from intsr.calib.models.tensor_files import as_model_error
from intsr.errors import ModelError
from intsr.json_files import read_json as decode_file
from intsr.types import RESIZE_FILTERS, is_kind

# diffusers' schedulers whose x0 is the formula above -> the settings that make it so.
FLOW_SCHEDULERS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {},
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
}


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """`intsr_model.json` of a video model. sigma: null for what a flow-matching scheduler has at the timestep."""

    schema_version: int
    name: str
    timestep: float
    upscale_factor: int
    resize_filter: str
    # A safetensors file beside it; null: it has to be given.
    context: str | None
    licence: str
    sigma: float | None = None
    # Whether the weights are random.
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """What one-step inference of a video model needs to know beside the weights."""

    name: str
    # What the transformer is told; sigma: how much of v is taken from the latents, in (0, 1].
    timestep: float
    sigma: float
    # One a latent channel: the transformer sees (VAE's latents - mean) / std.
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    # Output side over input side.
    upscale_factor: int
    # How the input is brought to the output's size first.
    resize_filter: str
    # The output's sides must be whole multiples of this for all networks.
    size_multiple_px: int
    licence: str = ""
    # Random weights, good for speed and memory alone. Not in repr(), as in ModelSpec.
    synthetic: bool = field(default=False, repr=False)

    @property
    def input_factor(self) -> int:
        """As in `PictureSpec`."""
        return self.upscale_factor

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 1:
            raise ValueError(f"sigma is {self.sigma}, not in (0, 1]")
        if not self.timestep >= 0:
            raise ValueError(f"timestep is {self.timestep}, not 0 or above")
        if self.resize_filter not in RESIZE_FILTERS:
            raise ValueError(f"resize_filter is {self.resize_filter!r}, not one of {', '.join(RESIZE_FILTERS)}")
        if self.upscale_factor < 1:
            raise ValueError(f"upscale_factor is {self.upscale_factor}, not above 0")


def read_video_settings(folder: Path) -> VideoSettings:
    """Read `intsr_model.json`, without which no timestep is known. Raises ModelError."""
    path = folder / SPEC_NAME
    if not path.is_file():
        raise ModelError(path, "no such file", "the timestep, upscale_factor and the like of a one-step model")
    return decode_file(path, VideoSettings, error=ModelError, version=SPEC_SCHEMA_VERSION)


def video_context_name(folder: Path) -> str | None:
    """Return the context's file of a folder that may have no `intsr_model.json` yet. Raises ModelError."""
    return read_video_settings(folder).context if (folder / SPEC_NAME).is_file() else None


def video_spec(settings: VideoSettings, configs: Mapping[str, Mapping[str, Any]], folder: Path) -> VideoSpec:
    """configs: of `transformer` and `vae`, checked. folder: where the scheduler is. Raises ModelError."""
    steps = _training_steps(folder / "scheduler" / "scheduler_config.json")
    height, width = setting("transformer", configs["transformer"], "patch_size")[1:]
    if height != width:
        raise ModelError(folder, f"patches of {height} x {width}", "square ones")
    with as_model_error(folder / SPEC_NAME):
        return VideoSpec(
            name=settings.name,
            timestep=settings.timestep,
            sigma=settings.timestep / steps if settings.sigma is None else settings.sigma,
            latents_mean=tuple(map(float, setting("vae", configs["vae"], "latents_mean"))),
            latents_std=tuple(map(float, setting("vae", configs["vae"], "latents_std"))),
            upscale_factor=settings.upscale_factor,
            resize_filter=settings.resize_filter,
            size_multiple_px=spatial_factor(configs["vae"]) * height,
            licence=settings.licence,
            synthetic=settings.synthetic,
        )


def _training_steps(path: Path) -> int:
    """How many timesteps sigma from 0 to 1 is divided into. Raises ModelError for a scheduler of another x0."""
    config = read_json(path)
    name = config.get("_class_name")
    if name not in FLOW_SCHEDULERS:
        raise ModelError(path, f"class {name}", " or ".join(FLOW_SCHEDULERS))
    for key, wanted in {**FLOW_SCHEDULERS[name], "thresholding": False}.items():
        value = config.get(key, False)
        if value != wanted:
            raise ModelError(path, f"{key} {value!r}", f"{wanted!r}, for x0 = z - sigma v")
    steps = config.get("num_train_timesteps", 1000)
    if not is_kind(steps, int) or steps < 1:
        raise ModelError(path, f"num_train_timesteps {steps!r}", "a whole number above 0")
    return int(steps)
