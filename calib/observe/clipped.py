"""Measure how much of every layer's input lies outside its grid: on pictures, and on the guard.

What is clipped errs in one direction, and on a flat picture it is the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibration.types import Clipped, SiteQuantizer
from intsr.calib.data.pictures import calibration_inputs, guard_batch, guard_side_px
from intsr.calib.models.sites import integer_sites
from intsr.calib.observe.hooks import run_observed
from intsr.kernels.layer_algebra import channel_axis, transform
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.rotation import rotate

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

# Enough to tell 10 % from 0.1 %.
CLIPPED_PICTURES = 4


class ClippedObserver:
    """A forward pre-hook of one layer: counts alone are kept."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, quantizer: SiteQuantizer) -> None:
        s, d = quantizer.let_scale, quantizer.let_shift
        self._scale, self._shift = (None if values is None else torch.tensor(values) for values in (s, d))
        self._axis, self._rotation = channel_axis(layer), quantizer.rotation
        self._params = quantizer.activation_params()
        self.outside = self.count = 0

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = rotate(inputs[0], self._rotation, self._axis)
        x = transform(x, self._scale, self._shift, self._axis)
        self.outside += sum(outside_counts(x, self._params))
        self.count += x.numel()


def outside_counts(x: torch.Tensor, params: QuantParams) -> tuple[int, int]:
    """How many values are below and above a grid; half a step beyond its ends still rounds to them."""
    half = params.scale / 2
    below, above = x < params.real_min - half, x > params.real_max + half
    return int(below.count_nonzero()), int(above.count_nonzero())


def clipped_shares(
    model: SRModel, sites: Mapping[str, SiteQuantizer], pictures: Sequence[Path], tile_px: int, seed: int
) -> dict[str, Clipped]:
    """Return the shares of every layer among `sites` that engines run on integers, on full-precision inputs.

    pictures: low-resolution files, a tile of each is looked at. tile_px: that of calibration. Raises ImageError.
    """
    side_px = guard_side_px(model.spec, tile_px)
    of_pictures = (torch.from_numpy(x) for _, x in calibration_inputs(pictures, model.spec, side_px))
    of_guard = guard_batch(model.spec, side_px, seed).split(1)[::2]
    shares = [_shares(model, sites, batches) for batches in (of_pictures, of_guard)]
    return {site: Clipped(pictures=shares[0][site], guard=shares[1][site]) for site in shares[0]}


def _shares(model: SRModel, sites: Mapping[str, SiteQuantizer], batches: Iterable[torch.Tensor]) -> dict[str, float]:
    parts = tuple(dict.fromkeys(site.partition(".")[0] for site in sites))
    layers = integer_sites(model, parts)
    observers = {site: ClippedObserver(layer, sites[site]) for site, layer in layers.items()}
    run_observed(model, batches, layers, observers)
    return {site: observer.outside / max(observer.count, 1) for site, observer in observers.items()}
