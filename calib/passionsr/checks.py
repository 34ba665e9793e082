"""Check that a checkpoint of PassionSR belongs to a model, by its norms and weight ranges: it holds no weights.

docs/theory.md, "PassionSR's checkpoints".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from intsr.calib.models.families.sd21 import network_of_site
from intsr.errors import CalibrationError

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.passionsr.checkpoint import PassionSRCheckpoint
    from intsr.calib.passionsr.types import PassionSRLayer

# Norms are copied, not trained: what differs is another model. A copy that went through fp16 is still the same.
NORM_TOLERANCE = 2e-3
# How far a learned range's ends may lie from the smallest and largest of W s, as a share of the range's width: the
# median over a layer's output channels, and over all of a network's. Training moves them by a few thousandths; the
# reference checkpoints, whose ranges were shaken by 2 %, have 0.04 and 0.01.
LAYER_LIMIT, NETWORK_LIMIT = 0.15, 0.03


@torch.no_grad()
def check_belongs_to(checkpoint: PassionSRCheckpoint, model: SRModel) -> None:
    """Raises CalibrationError where norms differ from the model's, or weight ranges do not fit its weights."""
    _check_norms(checkpoint, model)
    layers = checkpoint.quantizers.layers
    fits = {site: range_misfit(_module(model, site).weight, layer) for site, layer in layers.items()}
    networks: dict[str, list[NDArray[np.float64]]] = {}
    for site, misfit in fits.items():
        networks.setdefault(network_of_site(site), []).append(misfit)
    medians = {name: float(np.median(np.concatenate(values))) for name, values in networks.items()}
    worst = max(fits, key=lambda site: float(np.median(fits[site])))
    share = float(np.median(fits[worst]))
    wrong = [f"{name} by {median:.1%}" for name, median in medians.items() if median > NETWORK_LIMIT]
    if share > LAYER_LIMIT or wrong:
        got = f"weight ranges that miss the model's weights: {', '.join([*wrong, f'{worst} by {share:.1%}'])}"
        limits = f"ends within {NETWORK_LIMIT:.0%} of a network's weights times s, {LAYER_LIMIT:.0%} of a layer's"
        fix = "give the base model with OSEDiff's LoRA merged, the one that was calibrated"
        raise CalibrationError(f"{model.spec.name} with this checkpoint", got, limits, fix)


def range_misfit(weight: torch.Tensor, layer: PassionSRLayer) -> NDArray[np.float64]:
    """Distance of both ends from the smallest and largest of W s, by range width: float64 (pieces * Cout,)."""
    scaled = weight.detach().numpy().reshape(*weight.shape[:2], -1) * layer.scale[None, :, None]
    pieces = np.split(scaled, [scaled.shape[1] // 2], axis=1) if len(layer.weight_low) == 2 else [scaled]
    low, high = (np.stack([end(piece, axis=(1, 2)) for piece in pieces]) for end in (np.min, np.max))
    width = layer.weight_high - layer.weight_low
    distance = np.maximum(np.abs(layer.weight_low - low), np.abs(layer.weight_high - high)) / width
    return distance.flatten().astype(np.float64)


def _check_norms(checkpoint: PassionSRCheckpoint, model: SRModel) -> None:
    for site, tensors in checkpoint.norms.items():
        norm = _module(model, site)
        for name, tensor in zip(("weight", "bias"), tensors, strict=True):
            difference = float((getattr(norm, name) - tensor).abs().max())
            if difference > NORM_TOLERANCE * max(1.0, float(tensor.abs().max())):
                got = f"{site}.{name} differs by {difference:.3g} from the checkpoint's"
                fix = "give the base model that was calibrated"
                raise CalibrationError(f"{model.spec.name} with this checkpoint", got, "equal norms", fix)


def _module(model: SRModel, site: str) -> Any:
    part, _, name = site.partition(".")
    return getattr(model, part).get_submodule(name)
