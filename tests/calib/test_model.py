from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import edit_json
from safetensors.torch import load_file, save_file

from intsr.calib.models.cost import architecture_from_folder
from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks
from intsr.errors import ModelError

UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
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
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    place = re.compile(rf"(\.attentions\..*)\b({'|'.join(old)})\b")
    weights = {place.sub(lambda m: m[1] + old[m[2]], key): value for key, value in load_file(path).items()}
    assert sum(".proj_attn." in key for key in weights) == 4
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


def edit_weights(path: Path, *lost: str, **new: torch.Tensor) -> None:
    weights = load_file(path) | {name.replace("__", "."): tensor for name, tensor in new.items()}
    save_file({name: tensor for name, tensor in weights.items() if name not in lost}, path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/config.json", Path.unlink, "no such file"),
        (UNET, Path.unlink, "no weights"),
        ("scheduler/scheduler_config.json", Path.unlink, "no such file"),
        ("context.safetensors", Path.unlink, "no such file"),
        ("intsr_model.json", Path.unlink, "--context"),
        (UNET, lambda path: path.write_bytes(path.read_bytes()[:-100]), "diffusion_pytorch_model"),
        (UNET, lambda path: edit_weights(path, surplus=torch.zeros(1)), "surplus"),
        (UNET, lambda path: edit_weights(path, "conv_in.bias"), "conv_in.bias"),
        (
            VAE,
            lambda path: edit_weights(path, quant_conv__bias=torch.full((8,), torch.nan)),
            "NaN or infinity in quant",
        ),
        ("intsr_model.json", lambda path: edit_json(path, flavour="mint"), "flavour"),
        ("intsr_model.json", lambda path: edit_json(path, upscale_factor=0), ": upscale_factor is 0, not above 0"),
        (
            "scheduler/scheduler_config.json",
            lambda path: path.write_text('{"beta_schedule": "linear", "clip_sample": false}'),
            "no 'num_train_timesteps'",
        ),
        (
            "context.safetensors",
            lambda path: save_file({"context": torch.zeros(1, 7, 8)}, path),
            "width 8; expected 24",
        ),
        (
            "context.safetensors",
            lambda path: save_file({"context": torch.zeros(1, 0, 24)}, path),
            "context of shape (1, 0, 24)",
        ),
    ],
)
def test_a_broken_folder_is_one_line(folder: Path, file: str, change: Callable[[Path], object], words: str) -> None:
    change(folder / file)
    with pytest.raises(ModelError) as error:
        load_model(str(folder))
    assert words in str(error.value) and "\n" not in str(error.value)
    # Nothing but the scheduler's own is blamed on it.
    assert ("scheduler_config.json" in str(error.value)) == file.startswith("scheduler")


@pytest.mark.parametrize("values", [{"upscale_factor": True}, {"timestep": "999"}, {"context": False}])
def test_settings_of_another_type(folder: Path, values: dict[str, object]) -> None:
    edit_json(folder / "intsr_model.json", **values)
    for opened in (lambda: load_model(str(folder)), lambda: architecture_from_folder(folder)):
        with pytest.raises(ModelError, match=f"intsr_model.json: .*{next(iter(values))}") as error:
            opened()
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="reference data is not here")
def test_published_empty_prompt_context_has_sd21s_shape() -> None:
    context = load_file(SHARED_DATA / "sd21" / "empty_prompt_context.safetensors")["context"]
    assert context.shape == (1, 77, 1024) and context.dtype == torch.float32
