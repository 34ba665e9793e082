"""The torch import against what the official code computed: layer by layer, and end to end."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from intsr.calib.models.reference import reference_networks
from intsr.calib.passionsr.forward import passionsr_grid, quantize_scalar_range, round_half_away
from intsr.calib.passionsr.layout import PREFIX, checkpoint_layout

FLOATS = (torch.float64, torch.float32)
LAYER_TOLERANCE = 1e-5
FULL_PRECISION_TOLERANCE = 5e-5


def test_halves_round_away_from_zero() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999998])
    assert round_half_away(x).tolist() == [-3, -2, -1, 1, 2, 3, 2]


def test_scalar_grids_are_made_in_float64() -> None:
    """R(min / D) is -17 in float64 and -18 in float32: a whole code apart."""
    low, high = float(np.float32(-0.364)), float(np.float32(4.94))
    firsts = [passionsr_grid(torch.tensor(low, dtype=t), torch.tensor(high, dtype=t), 8)[1] for t in FLOATS]
    assert [float(first) for first in firsts] == [-17, -18]
    y = quantize_scalar_range(torch.tensor([-9.0, 9.0]), (low, high), 8)
    step = np.float32((high - low) / 255)
    assert y.tolist() == [float(-17 * step), float(238 * step)]


def _recorded(reference: Any) -> dict[str, Any]:
    """ldm name with its part -> module of the torch import, for everything that was recorded."""
    found = {"vae.encoder.mid.attn_1": reference.official.vae.encoder.mid_block.attentions[0]}
    for part in ("unet", "vae"):
        for entry in checkpoint_layout(reference.model, part):
            name = f"{part}.{entry.key.removeprefix(PREFIX)}"
            if f"{name}.in" in reference.layers_quant:
                found[name] = reference.official.modules.get_submodule(entry.site)
    return found


@torch.no_grad()
def test_every_recorded_layer(reference: Any) -> None:
    tensors, layers = reference.layers_quant, _recorded(reference)
    assert {key.removesuffix(".in") for key in tensors if key.endswith(".in")} == set(layers)
    for name, module in layers.items():
        x, expected = tensors[f"{name}.in"], tensors[f"{name}.out"]
        # ldm's 1x1 convolutions of the VAE's attention are linear layers in diffusers.
        linear = isinstance(getattr(module, "layer", None), torch.nn.Linear) and x.ndim == 4
        context = {"encoder_hidden_states": tensors[f"{name}.context"]} if name.endswith("attn2") else {}
        y = module(x.flatten(2).transpose(1, 2) if linear else x, **context)
        y = y.transpose(1, 2).reshape(expected.shape) if linear else y
        assert (y - expected).abs().max() <= LAYER_TOLERANCE, name


@torch.no_grad()
def _outputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    posterior = model.vae.encode(inputs["image"]).latent_dist
    networks = reference_networks(model)
    latent = networks["encoder"](inputs["image"])
    denoised = networks["unet"](latent)
    return {
        "unet_out": model.unet(inputs["latent"], inputs["timesteps"], encoder_hidden_states=inputs["context"]).sample,
        "vae_moments": posterior.parameters,
        "vae_mode": posterior.mode(),
        "vae_decode": model.vae.decode(inputs["decoder_in"]).sample,
        "e2e_latent": latent,
        "e2e_pred": model.unet(latent, 999, encoder_hidden_states=inputs["context"]).sample,
        "e2e_x0": denoised,
        "e2e_image": networks["decoder"](denoised).clamp(-1, 1),
    }


def test_full_precision_end_to_end(reference: Any) -> None:
    for name, y in _outputs(reference.model, reference.inputs).items():
        assert (y - reference.outputs_fp[name]).abs().max() <= FULL_PRECISION_TOLERANCE, name
        # What is quantized is far from it.
        assert (y - reference.outputs_quant[name]).square().mean().sqrt() > 1e-3, name


def test_quantized_end_to_end(reference: Any) -> None:
    """Within the official code's own floors: what another order of the same sums changed there, at 8 bits.

    One flipped code spreads over the whole picture; most outputs are equal to the last digits.
    """
    floors = json.loads((reference.folder.parent / "w8a8" / "config.json").read_text())["noise_floor"]
    equal = 0
    for name, y in _outputs(reference.official, reference.inputs).items():
        rms = float((y - reference.outputs_quant[name]).square().mean().sqrt())
        floor = max(run[name]["rms"] for run in floors.values())
        quantization = json.loads((reference.folder / "config.json").read_text())["quant_vs_fp"][name]["rms"]
        equal += rms < LAYER_TOLERANCE
        assert rms <= max(floor, quantization / 2), name
    assert equal >= 3
