"""Settings of other networks: refused in one line when the model is opened, and only those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from models import edit_json
from safetensors.torch import save_file

from intsr.calib.models.cost import architecture_from_folder
from intsr.calib.models.open import load_model, open_model
from intsr.calib.models.reference import reference_networks
from intsr.errors import ModelError
from intsr.export.fold.specialize import specialize

Command = Callable[..., tuple[int, str, str]]

OTHERS = [
    ("unet", {"only_cross_attention": True}, "only_cross_attention True; expected none, as in SD 2.1's UNET"),
    ("unet", {"only_cross_attention": [False, True]}, "only_cross_attention"),
    ("unet", {"num_class_embeds": 10}, "num_class_embeds 10"),
    ("unet", {"mid_block_type": None}, "mid_block_type None; expected UNetMidBlock2DCrossAttn"),
    ("unet", {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "'SimpleCrossAttnDownBlock2D'"),
    ("unet", {"norm_num_groups": None}, "norm_num_groups None"),
    ("unet", {"act_fn": "mish"}, "act_fn 'mish'; expected silu or swish or gelu"),
    ("vae", {"act_fn": "relu"}, "act_fn 'relu'; expected silu or swish or gelu"),
    ("unet", {"cross_attention_dim": [24, 24]}, "cross_attention_dim [24, 24]; expected one whole number"),
    ("unet", {"cross_attention_dim": True}, "cross_attention_dim True"),
    ("vae", {"scaling_factor": -0.18215}, "vae/config.json: scaling_factor -0.18215; expected a number above 0"),
    ("vae", {"scaling_factor": "0.18215"}, "scaling_factor '0.18215'"),
    ("vae", {"scaling_factor": float("nan")}, "scaling_factor nan"),
    ("unet", {"in_channels": 9}, "unet: in_channels 9; expected 4, as many as the VAE's latent_channels"),
    ("vae", {"in_channels": 1}, "vae: in_channels 1; expected 3"),
    ("vae", {"latent_channels": 16}, "unet: in_channels 4; expected 16"),
    ("vae", {"shift_factor": 0.1}, "shift_factor 0.1"),
    ("vae", {"latents_mean": [0.1] * 4}, "latents_mean"),
]


@pytest.mark.parametrize(("part", "values", "message"), OTHERS)
def test_other_networks_are_refused_when_opened(
    folder: Path, part: str, values: dict[str, object], message: str
) -> None:
    edit_json(folder / part / "config.json", **values)
    for opened in (lambda: open_model(str(folder)), lambda: architecture_from_folder(folder)):
        with pytest.raises(ModelError) as error:
            opened()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_it_is_one_line_of_export(folder: Path, tmp_path: Path, intsr: Command) -> None:
    edit_json(folder / "unet" / "config.json", num_class_embeds=10)
    result = intsr("export", folder, "--tile", 16, "-o", tmp_path / "out")
    assert result[0] == 2 and len(result[2].splitlines()) == 1 and "num_class_embeds" in result[2]


@pytest.mark.parametrize("key", ["shift_factor", "latents_mean"])
def test_settings_that_are_there_and_off(folder: Path, key: str) -> None:
    edit_json(folder / "vae" / "config.json", **{key: None})
    assert open_model(str(folder)).spec.name == "tiny"


@pytest.mark.parametrize(
    "values",
    [
        {"attention_head_dim": 8},
        {"use_linear_projection": False},
        {"transformer_layers_per_block": 2},
        {"mid_block_type": "UNetMidBlock2D"},
        {"act_fn": "gelu"},
        {"act_fn": "swish"},
        {"resnet_out_scale_factor": 1.4, "mid_block_scale_factor": 1.5},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
    ],
)
def test_what_is_not_refused_is_computed(folder: Path, values: dict[str, object]) -> None:
    """Specialized as diffusers itself computes it."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(3)
    UNet2DConditionModel.from_config({**config, **values}).save_pretrained(folder / "unet")
    model = load_model(str(folder))
    latent = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        expected = reference_networks(model)["unet"](latent)
        torch.testing.assert_close(specialize("unet", model).module(latent), expected, rtol=1e-4, atol=1e-4)


def test_an_attention_that_looks_the_same(folder: Path) -> None:
    """With widths equal to the context's, only cross-attention was computed as self-attention."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    other = {**config, "only_cross_attention": [True, False], "cross_attention_dim": 32}
    UNet2DConditionModel.from_config(other).save_pretrained(folder / "unet")
    save_file({"context": torch.randn(1, 7, 32)}, folder / "context.safetensors")
    with pytest.raises(ModelError, match="only_cross_attention"):
        load_model(str(folder))
