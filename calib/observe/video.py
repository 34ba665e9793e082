"""MaxMin of a video model: each layer's input range over clips, with diffusers' own modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.models.families.wan import is_integer_video_site
from intsr.calib.models.modules import video_layers_of
from intsr.calib.models.video import VideoModel
from intsr.calib.observe.hooks import ChannelRanges
from intsr.errors import CalibrationError
from intsr.types import Bits


@torch.no_grad()
def observe_video(
    model: VideoModel, clips: Iterable[torch.Tensor], bits: Bits, parts: tuple[str, ...]
) -> dict[str, SiteQuantizer]:
    """Run the full-precision model over clips and return the range of every layer that engines run on integers.

    clips: (1, 3, frames, H, W) float32 in [-1, 1], 4n + 1 frames and more than one. Of the VAE each latent's frames
    count as one picture, of the transformer a clip does. Raises CalibrationError for activations that are not finite.
    """
    assert bits.weights is not None and bits.activations is not None
    modules = {
        site: layer
        for part in parts
        for name, layer in video_layers_of(getattr(model, part)).items()
        if is_integer_video_site(site := f"{part}.{name}")
    }
    observers = {site: ChannelRanges(site, layer) for site, layer in modules.items()}
    handles = [modules[site].register_forward_pre_hook(observer.see) for site, observer in observers.items()]
    try:
        for clip in clips:
            run_video_model(model, clip)
    finally:
        for handle in handles:
            handle.remove()
    return {
        site: SiteQuantizer(*observer.range_of(), bits.activations, bits.weights)
        for site, observer in observers.items()
    }


def run_video_model(model: VideoModel, frames: torch.Tensor) -> torch.Tensor:
    """One step by diffusers' own modules: (1, 3, frames, H, W) in [-1, 1] -> the same shape, clamped."""
    spec, vae, transformer = model.spec, model.vae, model.transformer
    mean, deviation = (torch.tensor(v)[None, :, None, None, None] for v in (spec.latents_mean, spec.latents_std))
    latents = (vae.encode(frames).latent_dist.mode() - mean) / deviation
    if not bool(torch.isfinite(latents).all()):
        raise CalibrationError(spec.name, "NaN or infinity in the latents", "finite activations")
    velocity: Any = transformer(latents, torch.tensor([spec.timestep]), model.context).sample
    result: torch.Tensor = vae.decode((latents - spec.sigma * velocity) * deviation + mean).sample
    return result
