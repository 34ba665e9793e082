from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import edit_json
from safetensors.torch import load_file, save_file

from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks
from intsr.errors import ModelError

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def test_spec_of_a_folder(tiny_model: SRModel) -> None:
    spec = tiny_model.spec
    assert (spec.timestep, spec.upscale_factor, spec.latent_scaling_factor) == (999, 4, 0.18215)
    # The known a_999 of SD 2.1's schedule.
    assert spec.alpha_bar == pytest.approx(0.00466010, rel=1e-5)
    # Two levels in the VAE and two in the UNet: 2 * 2.
    assert spec.size_multiple_px == 4
    assert tiny_model.context.shape == (1, 7, 24)


def test_weights_are_those_of_diffusers_own_loader(tiny_folder: Path, tiny_model: SRModel) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for cls, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        expected = cls.from_pretrained(tiny_folder / part, low_cpu_mem_usage=False).state_dict()
        got = getattr(tiny_model, part).state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_deprecated_attention_names_of_sd21s_vae_are_understood(folder: Path, tiny_model: SRModel) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for key, value in load_file(path).items():
        for new_name, old_name in old.items():
            key = key.replace(new_name, old_name) if ".attentions." in key else key
        weights[key] = value
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, path)
    got = load_model(str(folder)).vae.state_dict()
    assert all(torch.equal(value, got[key]) for key, value in tiny_model.vae.state_dict().items())


def test_defaults_are_osediffs(folder: Path) -> None:
    (folder / "intsr_model.json").unlink()
    model = load_model(str(folder), folder / "context.safetensors")
    assert (model.spec.timestep, model.spec.upscale_factor, model.spec.resize_filter) == (999, 4, "lanczos")


def test_reference_formula(tiny_model: SRModel) -> None:
    """x0 = (z - sqrt(1 - a) e) / sqrt(a), computed here by hand from diffusers' own scheduler."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        error = tiny_model.unet(latent, 999, encoder_hidden_states=tiny_model.context).sample
        got = reference_networks(tiny_model)["unet"](latent)
    expected = scheduler.step(error, 999, latent).pred_original_sample
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("unet/config.json", "no such file"),
        ("unet/diffusion_pytorch_model.safetensors", "no weights"),
        ("scheduler/scheduler_config.json", "no such file"),
        ("context.safetensors", "no such file"),
    ],
)
def test_missing_file(folder: Path, file: str, message: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=message) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="diffusion_pytorch_model"):
        load_model(str(folder))


def test_missing_and_unexpected_keys_are_errors(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["surplus"] = torch.zeros(1)
    save_file(weights, path)
    with pytest.raises(ModelError, match="surplus"):
        load_model(str(folder))
    del weights["surplus"], weights["conv_in.bias"]
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"conv_in\.bias"):
        load_model(str(folder))


def test_nan_in_weights(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["quant_conv.bias"][0] = float("nan")
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"NaN or infinity in quant_conv\.bias"):
        load_model(str(folder))


def test_unknown_setting(folder: Path) -> None:
    edit_json(folder / "intsr_model.json", flavour="mint")
    with pytest.raises(ModelError, match="flavour"):
        load_model(str(folder))


def test_settings_of_another_type(folder: Path) -> None:
    from intsr.calib.models.cost import architecture_from_folder

    before = json.loads((folder / "intsr_model.json").read_text())
    for key, value in (
        ("upscale_factor", True),
        ("timestep", "999"),
        ("licence", None),
        ("context", False),
        ("synthetic", 1),
    ):
        (folder / "intsr_model.json").write_text(json.dumps(before | {key: value}))
        for opened in (lambda: load_model(str(folder)), lambda: architecture_from_folder(folder)):
            with pytest.raises(ModelError, match=f"intsr_model.json: .*{key}") as error:
                opened()
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -4])
def test_a_factor_that_is_none(folder: Path, value: int) -> None:
    edit_json(folder / "intsr_model.json", upscale_factor=value)
    with pytest.raises(ModelError, match=f"upscale_factor is {value}, not above 0"):
        load_model(str(folder))


def test_a_schedule_without_its_numbers(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear", "clip_sample": false}')
    with pytest.raises(ModelError, match="no 'num_train_timesteps'"):
        load_model(str(folder))


def test_context_of_the_wrong_width(folder: Path) -> None:
    save_file({"context": torch.zeros(1, 7, 8)}, folder / "context.safetensors")
    with pytest.raises(ModelError, match="width 8; expected 24"):
        load_model(str(folder))


def test_no_context_anywhere(folder: Path) -> None:
    (folder / "intsr_model.json").unlink()
    with pytest.raises(ModelError, match="--context"):
        load_model(str(folder))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="reference data is not here")
def test_published_empty_prompt_context_has_sd21s_shape() -> None:
    context = load_file(SHARED_DATA / "sd21" / "empty_prompt_context.safetensors")["context"]
    assert context.shape == (1, 77, 1024) and context.dtype == torch.float32
