"""MaxMin of a video model: each layer's input range over clips, with diffusers' own modules."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.models.families.sd21 import input_groups
from intsr.calib.models.families.wan import bits_of_video_site
from intsr.calib.models.reference import video_reference_networks
from intsr.calib.models.video import VideoModel, integer_video_sites
from intsr.calib.observe.hooks import ChannelRanges, observed
from intsr.calib.observe.let_scales import let_scale_from_maxima, weight_amax
from intsr.errors import CalibrationError
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.kernels.layer_algebra import Layer


@torch.no_grad()
def observe_video(
    model: VideoModel,
    clips: Iterable[torch.Tensor],
    bits: Bits,
    parts: tuple[str, ...],
    guard: Iterable[torch.Tensor] = (),
    *,
    alpha: float | None = None,
) -> dict[str, SiteQuantizer]:
    """Run the full-precision model over clips and return the range of every layer that engines run on integers.

    clips: (1, 3, frames, H, W) float32 in [-1, 1], 4n + 1 frames and more than one. Of the VAE each latent's frames
    count as one picture, of the transformer a clip does. guard: clips of `made_pictures`, of such a shape. alpha: of
    s = (max|x_c| / max|W_c|)**alpha, which the transformer's inputs are divided by first; None for no such s. Raises
    CalibrationError for activations that are not finite.
    """
    modules = integer_video_sites(model, parts)
    observers = {site: ChannelRanges(site, layer) for site, layer in modules.items()}
    for batches, is_guard in ((clips, False), (guard, True)):
        with observed(modules, {site: partial(o.see, guard=is_guard) for site, o in observers.items()}):
            for clip in batches:
                run_video_model(model, clip)
    quantizers = {}
    for group in input_groups(modules):
        x_min, x_max, let = _range_of_group(group, observers[group[0]], modules, alpha)
        for site in group:
            weight_bits, activation_bits = bits_of_video_site(site, bits)
            quantizers[site] = SiteQuantizer(x_min, x_max, activation_bits, weight_bits, **let)
    return {site: quantizers[site] for site in modules}


def _range_of_group(
    group: tuple[str, ...], observer: ChannelRanges, modules: dict[str, Layer], alpha: float | None
) -> tuple[float, float, dict[str, Any]]:
    """(x_min, x_max, the LET's arrays by name) of layers that read one tensor."""
    if alpha is None or group[0].startswith("vae."):
        return *observer.range_of(), {}
    s = let_scale_from_maxima(observer.amax(), weight_amax(modules[site].weight for site in group), alpha)
    return *observer.range_of(s), {"let_scale": s.numpy(), "let_shift": torch.zeros_like(s).numpy()}


def run_video_model(model: VideoModel, frames: torch.Tensor) -> torch.Tensor:
    """One step by diffusers' own modules: (1, 3, frames, H, W) in [-1, 1] -> the same shape, clamped."""
    networks = video_reference_networks(model)
    result: torch.Tensor = networks["decoder"](networks["transformer"](latents_of_clip(model, frames)))
    return result


def latents_of_clip(model: VideoModel, frames: torch.Tensor) -> torch.Tensor:
    """(1, 3, frames, H, W) in [-1, 1] -> (1, C, f, h, w), the transformer's input. Raises CalibrationError."""
    latents: torch.Tensor = video_reference_networks(model)["encoder"](frames)
    if not bool(torch.isfinite(latents).all()):
        raise CalibrationError(model.spec.name, "NaN or infinity in the latents", "finite activations")
    return latents
