"""The scheduler's part of one step: alpha_bar at the timestep, and that x0 is nothing but the plain formula there.

    x0 = (z - sqrt(1 - alpha_bar) e) / sqrt(alpha_bar)

What else diffusers' schedulers can do to x0 is refused: clipping, thresholding, another prediction, other betas.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intsr.calib.models.tensor_files import as_model_error
from intsr.errors import ModelError
from intsr.types import is_kind

# diffusers' schedulers whose x0, from a prediction of epsilon, is the formula above. The first clip it to
# [-1, 1] unless their configuration says otherwise.
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
# Off, null or absent in SD 2.1's, whatever the class.
OTHER_BETAS = ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas")
NUMBERS: dict[str, tuple[type, ...]] = {
    "num_train_timesteps": (int,),
    "beta_start": (int, float),
    "beta_end": (int, float),
}


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


def _check_x0(config: Mapping[str, Any], where: Path) -> None:
    """Raises ModelError where x0 is not the formula."""
    # Without a name it is what OSEDiff's and PassionSR's code loads it as.
    name = config.get("_class_name", CLIPPING[0])
    if name not in CLIPPING + PLAIN:
        raise ModelError(where, f"class {name}", f"{', '.join(CLIPPING[::2])}, {PLAIN[0]} or their kin")
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        # OSEDiff's and PassionSR's code has x0 from epsilon in so many words, whatever the scheduler says.
        fix = "where the model's own code computes x0 from epsilon, write that there"
        raise ModelError(where, f"prediction_type {prediction!r}", "epsilon", fix)
    fix = "where the model's own code leaves x0 as it is, write false there"
    for key, default in (("clip_sample", name in CLIPPING), ("thresholding", False)):
        value = config.get(key, default)
        if value:
            got = f"{key} {value!r}" if key in config else f"no {key}, which for a {name} means true"
            raise ModelError(where, got, "false: x0 that nothing clips", fix)
