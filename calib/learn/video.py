"""Learned calibration of a video model: its transformer block by block, and then as a whole.

The VAE is not trained: LSGQuant freezes it, and at 8 bits there is nothing to win. Inputs are full precision's
latents of clips, targets full precision's x0.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from intsr.calib.calibration.types import Sensitivity
from intsr.calib.data.crops import Crops
from intsr.calib.learn.quantized_layer import QuantizedLayer, layers_on_grids
from intsr.calib.learn.rotation_search import unrotated_sites
from intsr.calib.learn.stages import Curves, Run, check_device, outputs
from intsr.calib.learn.volts import input_variances, tiers_from_variances
from intsr.calib.learn.walk import NetworkWalk
from intsr.calib.models.families.wan import bits_of_video_site, setting
from intsr.calib.models.reference import video_reference_networks
from intsr.calib.models.video import VideoModel, integer_video_sites
from intsr.calib.observe.video import latents_of_clip
from intsr.types import Bits

PART = "transformer"


def transformer_layers(model: VideoModel, bits: Bits, **settings: Any) -> dict[str, QuantizedLayer]:
    """A QuantizedLayer for every integer site of the transformer. settings: of `layers_on_grids`."""
    head = int(setting(PART, model.transformer.config, "attention_head_dim"))
    sites = integer_video_sites(model, (PART,))
    return layers_on_grids(sites, lambda site: bits_of_video_site(site, bits), lambda _: head, **settings)


def _layers_of_run(
    model: VideoModel, bits: Bits, run: Run, reference: nn.Module, crops: Crops
) -> dict[str, QuantizedLayer]:
    """The method's layers, not initialized, on the crops' device: rotated where it says so, or where they gain."""
    method, settings, device = run.method, run.method.layer_settings, crops.train[0].device

    def made(rotated: bool, unrotated: Collection[str] = ()) -> dict[str, QuantizedLayer]:
        layers = transformer_layers(model, bits, **{**settings, "rotated": rotated}, unrotated=unrotated)
        return {site: layer.to(device) for site, layer in layers.items()}

    layers = made(method.rotated)
    if not method.searched_rotations or not any(layer.grid.spec.rotation for layer in layers.values()):
        return layers

    def search() -> dict[str, Any]:
        return {"sites": unrotated_sites(reference, made, crops.train, method.start, run.seed)}

    unrotated, _ = run.journal.step(f"{PART}: rotations", search)
    return made(True, unrotated["sites"])


@torch.no_grad()
def latent_crops(model: VideoModel, crops: Crops) -> Crops:
    """The latents of crops (1, 3, frames, S, S): (1, C, f, h, w) each."""
    return crops.map(partial(latents_of_clip, model))


@dataclass(frozen=True, slots=True)
class LearnedTransformer:
    """layers: every integer layer, by site. sensitivity: of methods with tiers. quantized: the network with them."""

    layers: dict[str, QuantizedLayer]
    curves: Curves
    sensitivity: dict[str, Sensitivity]
    quantized: nn.Module


def learn_video(model: VideoModel, bits: Bits, run: Run, device: str = "cpu") -> LearnedTransformer:
    """Train what the method says. run.crops: of latents. Raises CalibrationError, UsageError."""
    check_device(device)
    reference = video_reference_networks(model)[PART].to(device)
    crops = run.crops.map(lambda crop: crop.to(device))
    inputs = list(crops.all)
    layers = _layers_of_run(model, bits, run, reference, crops)
    sensitivity: dict[str, Sensitivity] = {}
    if run.method.volts:
        plain = {site: reference.get_submodule(site) for site in layers}
        # Of clips alone: flat pictures would say how much layers know of colour.
        clips = (*crops.train, *crops.held_out)
        sensitivity = tiers_from_variances(input_variances(reference, plain, clips))
        for site, layer in layers.items():
            layer.tier = sensitivity[site].tier
    walk = NetworkWalk(PART, reference, layers, replace(run, crops=crops))
    curves = walk.train(inputs, inputs, outputs(reference, inputs))
    return LearnedTransformer(layers, curves, sensitivity, walk.quantized)
