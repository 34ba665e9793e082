"""The scheduler's configuration against diffusers' own step: what x0 is more than the formula is refused."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from intsr.calib.models.spec import CLIPPING, PLAIN, alpha_bar_from_scheduler, x0_rule_from_scheduler
from intsr.errors import ModelError
from intsr.types import ModelSpec

HERE = Path("scheduler_config.json")
# As stabilityai/stable-diffusion-2-1-base has it.
SD21_BASE: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.10.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in SD21_BASE.items() if name != key}


def test_sd21s_own() -> None:
    # The known a_999 of SD 2.1's schedule.
    assert alpha_bar_from_scheduler(SD21_BASE, 999, HERE) == pytest.approx(0.00466010, rel=1e-5)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("changes", [{}, {"clip_sample": True}, {"clip_sample": False, "thresholding": True}])
def test_what_diffusers_clips_is_refused(name: str, changes: dict[str, Any]) -> None:
    """x0 by diffusers' own step is the formula exactly where the configuration is taken."""
    for config, is_formula in ((without("clip_sample") | changes, False), (SD21_BASE, True)):
        config = config | {"_class_name": name}
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(1000)
        scheduler.timesteps = torch.arange(999, -1, -1)
        latent, error = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
        got = scheduler.step(error, 999, 3 * latent).pred_original_sample
        alpha_bar = alpha_bar_from_scheduler(SD21_BASE, 999, HERE)
        expected = (3 * latent - math.sqrt(1 - alpha_bar) * error) / math.sqrt(alpha_bar)
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3) == is_formula
        if is_formula:
            alpha_bar_from_scheduler(config, 999, HERE)
            continue
        with pytest.raises(
            ModelError, match=r"(clip_sample|thresholding).*expected false.*write false there"
        ) as told:
            alpha_bar_from_scheduler(config, 999, HERE)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [1, 200, 999])
def test_x0_is_diffusers_own(name: str, prediction: str, timestep: int) -> None:
    config = SD21_BASE | {"_class_name": name, "prediction_type": prediction}
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(1000)
    scheduler.timesteps = torch.arange(999, -1, -1)
    latent, output = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    expected = scheduler.step(output, timestep, latent).pred_original_sample
    rule, alpha_bar = x0_rule_from_scheduler(config, HERE), alpha_bar_from_scheduler(config, timestep, HERE)
    latent_gain, output_gain = ModelSpec("m", timestep, alpha_bar, 0.18, 4, "lanczos", 64, x0_rule=rule).x0_gains
    torch.testing.assert_close(latent_gain * latent + output_gain * output, expected, rtol=1e-5, atol=1e-5)


def test_without_the_key_the_classes_say_it() -> None:
    with pytest.raises(ModelError, match="no clip_sample, which for a DDIMScheduler means true"):
        alpha_bar_from_scheduler(without("clip_sample") | {"_class_name": "DDIMScheduler"}, 999, HERE)
    assert alpha_bar_from_scheduler(without("clip_sample"), 999, HERE) > 0


def test_the_classes_defaults_are_diffusers_own() -> None:
    for name in CLIPPING + PLAIN:
        scheduler = getattr(diffusers, name)
        if hasattr(scheduler, "_backends"):
            continue  # a stand-in: it needs a library that is not here
        parameters = inspect.signature(scheduler.__init__).parameters
        clips = parameters["clip_sample"].default if "clip_sample" in parameters else False
        assert clips == (name in CLIPPING), name
        for key in ("thresholding", "rescale_betas_zero_snr", "trained_betas", "use_flow_sigmas"):
            assert key not in parameters or not parameters[key].default, (name, key)
        assert parameters["prediction_type"].default == "epsilon", name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "class FlowMatchEulerDiscreteScheduler; expected DDPM"),
        # Its x0 is another, which no key shows.
        ({"_class_name": "LCMScheduler"}, "class LCMScheduler"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is set"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "'squaredcos_cap_v2'; expected scaled_linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'; expected epsilon or v_pred"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps is 1000.0, not a whole number"),
        ({"beta_start": True}, "beta_start is True, not a number"),
        ({"beta_end": "0.012"}, "beta_end is '0.012', not a number"),
        ({"beta_start": -0.1}, "betas from -0.1 to 0.012; expected between 0 and 1"),
    ],
)
def test_others_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as error:
        x0_rule_from_scheduler(SD21_BASE | changes, HERE)
        alpha_bar_from_scheduler(SD21_BASE | changes, 999, HERE)
    assert words in str(error.value) and "\n" not in str(error.value)
