"""Counts against the published ones, and against torch's own operation counter."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch.utils.flop_counter import FlopCounterMode

from intsr.calib.calibrate import parse_parts
from intsr.calib.commands.info import info
from intsr.calib.models.cost import (
    NetworkCost,
    architecture_from_folder,
    architecture_from_name,
    costs_from_architecture,
    quantize_cost,
    total_from_costs,
)
from intsr.calib.models.families.architecture import SD21, Architecture
from intsr.calib.models.spec import default_settings
from intsr.errors import ModelError, UsageError
from intsr.types import Bits

TINY = Architecture(
    name="tiny",
    unet={
        "in_channels": 8,
        "out_channels": 8,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
    },
    vae={
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 16, 24],
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 4,
    },
    context_tokens=5,
)


@pytest.fixture(scope="module")
def sd21_costs() -> tuple[NetworkCost, ...]:
    return costs_from_architecture(SD21)


def test_sd21_counts_are_the_published_ones(sd21_costs):
    unet, vae = sd21_costs
    assert (unet.name, unet.parameters, unet.macs) == ("unet", 865_910_724, 339_102_597_120)
    assert (vae.name, vae.parameters) == ("vae", 83_653_863)
    assert [(half.name, half.parameters, half.macs) for half in vae.components] == [
        ("encoder", 34_163_664, 541_149_364_224),
        ("decoder", 49_490_199, 1_240_079_597_568),
    ]
    assert (round(unet.gops, 1), round(vae.gops, 1)) == (678.2, 3562.5)
    assert total_from_costs(sd21_costs).parameters == 949_564_587


@pytest.mark.parametrize(
    ("bits", "parts", "mega_parameters", "gops"),
    [
        ("w8a8", ("unet", "vae"), 237.4, 1060.2),
        ("w6a6", ("unet", "vae"), 178.0, 795.1),
        ("w8a8", ("unet",), 300.1, 3732.0),
        ("w6a6", ("unet",), 246.0, 3689.6),
        ("fp", ("unet", "vae"), 949.6, 4240.7),
    ],
)
def test_sd21_quantized_is_the_papers_compression_table(sd21_costs, bits, parts, mega_parameters, gops):
    quantized = quantize_cost(sd21_costs, Bits.parse(bits), parts)
    assert round(quantized.parameters / 1e6, 1) == mega_parameters
    assert round(quantized.gops, 1) == gops
    assert quantized.ratio_gops == pytest.approx(quantized.gops / total_from_costs(sd21_costs).gops)


@given(weights=st.integers(2, 8), activations=st.integers(2, 8))
def test_mixed_bits_store_at_the_weights_width_and_compute_at_the_wider(weights, activations):
    costs = (NetworkCost("unet", 3200, 64_000), NetworkCost("vae", 6400, 32_000))
    quantized = quantize_cost(costs, Bits(weights, activations), ("unet", "vae"))
    assert quantized.parameters == 9600 * weights / 32
    assert quantized.ratio_gops == pytest.approx(max(weights, activations) / 32)


def _counted_by_torch(forward) -> int:
    """Operations of convolutions and linear layers alone; attention's products are other operators."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(op, 0) for op in (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm))


def test_counts_agree_with_torchs_counter_on_real_tensors():
    size_px = 32
    unet, vae = costs_from_architecture(TINY, size_px)
    real_unet, real_vae = UNet2DConditionModel.from_config(TINY.unet), AutoencoderKL.from_config(TINY.vae)
    latent, context = torch.zeros(1, 8, size_px // 4, size_px // 4), torch.zeros(1, 5, 24)
    assert 2 * unet.macs == _counted_by_torch(lambda: real_unet(latent, 999, encoder_hidden_states=context))
    encoder, decoder = vae.components
    assert 2 * encoder.macs == _counted_by_torch(lambda: real_vae.encode(torch.zeros(1, 3, size_px, size_px)))
    assert 2 * decoder.macs == _counted_by_torch(lambda: real_vae.decode(latent))
    assert unet.parameters == sum(p.numel() for p in real_unet.parameters())
    assert vae.parameters == sum(p.numel() for p in real_vae.parameters())


def _write_model(folder: Path, vae=TINY.vae) -> Path:
    for part, config in (("unet", TINY.unet), ("vae", vae)):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


SETTINGS = asdict(replace(default_settings("tiny"), context="context.safetensors"))


def test_folder_gives_the_same_as_its_architecture(tmp_path):
    folder = _write_model(tmp_path / "model")
    save_file({"context": np.zeros((1, 5, 24), np.float32)}, folder / "context.safetensors")
    (folder / "intsr_model.json").write_text(json.dumps(SETTINGS))
    architecture = architecture_from_folder(folder)
    assert (architecture.name, architecture.context_tokens) == ("tiny", 5)
    assert costs_from_architecture(architecture, 64) == costs_from_architecture(TINY, 64)


def test_folder_without_settings_is_named_after_itself_and_has_clips_tokens(tmp_path):
    architecture = architecture_from_folder(_write_model(tmp_path / "model"))
    assert (architecture.name, architecture.context_tokens) == ("model", 77)


def test_broken_folders_are_one_line_errors(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        architecture_from_folder(tmp_path)
    other = _write_model(tmp_path / "other", vae={"_class_name": "AutoencoderTiny"})
    with pytest.raises(ModelError, match="class AutoencoderTiny; expected AutoencoderKL"):
        architecture_from_folder(other)
    (other / "vae" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        architecture_from_folder(other)
    settings = _write_model(tmp_path / "settings") / "intsr_model.json"
    settings.write_text('{"context": "nothing.safetensors"}')
    with pytest.raises(ModelError, match="schema version None"):
        architecture_from_folder(tmp_path / "settings")
    settings.write_text(json.dumps(SETTINGS | {"context": "nothing.safetensors"}))
    with pytest.raises(ModelError, match="no readable context"):
        architecture_from_folder(tmp_path / "settings")


def test_impossible_configuration_is_a_model_error():
    with pytest.raises(ModelError, match="cannot build this architecture") as caught:
        costs_from_architecture(Architecture("odd", {**TINY.unet, "norm_num_groups": 7}, TINY.vae), 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size_px", [2, 66])
def test_size_that_the_vae_cannot_divide_is_refused(size_px):
    with pytest.raises(UsageError, match="multiple of 4"):
        costs_from_architecture(TINY, size_px)


@pytest.mark.parametrize("text", ["", "unet,unet", "encoder", "unet;vae", "unet,"])
def test_unknown_parts_are_refused(text):
    with pytest.raises(UsageError, match="--parts"):
        parse_parts(text)


@pytest.mark.parametrize(("name", "arch"), [(None, None), ("demo", "sd21")])
def test_exactly_one_of_model_and_arch(name, arch):
    with pytest.raises(UsageError, match="neither or several"):
        architecture_from_name(name, arch)


def test_command_json(sd21_costs):
    arguments = ["--arch", "sd21", "--bits", "w6a6", "--parts", "unet", "--json"]
    answer = json.loads(CliRunner().invoke(info, arguments, catch_exceptions=False).stdout)
    assert [(n["name"], n["parameters"], round(n["gops"], 1)) for n in answer["networks"]] == [
        ("unet", 865_910_724, 678.2),
        ("vae", 83_653_863, 3562.5),
    ]
    assert answer["total"]["parameters"] == 949_564_587
    assert set(answer["quantized"]) == {"parameters", "gops", "ratio_parameters", "ratio_gops"}
    assert round(answer["quantized"]["parameters"] / 1e6, 1) == 246.0


def test_command_table(tmp_path):
    folder = _write_model(tmp_path / "model")
    result = CliRunner().invoke(info, [str(folder), "--size", "64", "--bits", "w4a8"], catch_exceptions=False)
    lines = [line.split() for line in result.stdout.splitlines()]
    unet, vae = costs_from_architecture(architecture_from_folder(folder), 64)
    assert ["unet", f"{unet.parameters:,}", f"{unet.gops:,.1f}"] in lines
    assert ["vae", f"{vae.parameters:,}", f"{vae.gops:,.1f}"] in lines
    assert ["of", "total", "12.5%", "25.0%"] in lines
    assert result.stderr == ""
