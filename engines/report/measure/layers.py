"""Measure what each calibrated layer does to its own input and output, on pictures through the float model.

    x~ = (x - d) / s,   y = W~ x~ + W d + b,   y^ = Q(W~) Q(x~) + W d + b,   W~ = s W

SQNR is 10 log10 of signal power over the power of the difference: of the input, x~ against Q(x~), and of the output,
y against y^. Each layer is measured alone, on what full precision gives it: errors of others are not in its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.data.pictures import tiles_from_picture
from intsr.calib.models.phases import in_phases
from intsr.calib.models.sites import integer_sites
from intsr.calib.observe.clipped import outside_counts
from intsr.calib.observe.fake_quant import calibrated_layer, let_weight
from intsr.calib.observe.hooks import run_observed
from intsr.types import PictureSpec

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

BINS = 64
# Histograms reach this part of the range's width beyond either end.
BEYOND = 0.25
MAX_SQNR_DB = 120.0
OUTLIER_CHANNELS = 5
# Many pictures say more than large tiles, and take as long.
TILE_PX = 64


class LayerObserver:
    """A forward pre-hook of one layer; sums only are kept, never an activation."""

    def __init__(self, site: str, quantizer: SiteQuantizer, layer: nn.Conv2d | nn.Linear, ticket: list[str]) -> None:
        self.site, self.quantizer, self._ticket = site, quantizer, ticket
        self.quantized, self.weight = calibrated_layer(layer, quantizer), let_weight(layer, quantizer)
        self.params = quantizer.activation_params()
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.seen_min, self.seen_max = math.inf, -math.inf
        self.clipped_low = self.clipped_high = self.count = 0
        self.input_power = self.input_error = self.output_power = self.output_error = 0.0
        self.amax = torch.zeros(layer.weight.shape[1])
        self.amax_let = torch.zeros(layer.weight.shape[1])

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.site not in self._ticket:
            self._ticket.append(self.site)
        x = inputs[0].detach().float()
        transformed = self.quantized.transformed(x)
        quantized = self.quantized.quantized(transformed)
        self._see_input(x, transformed, quantized)
        y = self.quantized.product(transformed, self.weight)
        self.output_error += _power(y - self.quantized.product(quantized, self.quantized.weight))
        self.output_power += _power(y)

    def _see_input(self, x: torch.Tensor, transformed: torch.Tensor, quantized: torch.Tensor) -> None:
        low, high = self.quantizer.x_min, self.quantizer.x_max
        width = max(high - low, 1e-12)
        ends = (low - BEYOND * width, high + BEYOND * width)
        self.counts += torch.histc(transformed.clamp(*ends), BINS, *ends)
        seen_min, seen_max = (float(end) for end in transformed.aminmax())
        self.seen_min, self.seen_max = min(self.seen_min, seen_min), max(self.seen_max, seen_max)
        below, above = outside_counts(transformed, self.params)
        self.clipped_low, self.clipped_high = self.clipped_low + below, self.clipped_high + above
        self.count += transformed.numel()
        self.input_power += _power(transformed)
        self.input_error += _power(transformed - quantized)
        others = (0, 2, 3) if x.ndim == 4 else tuple(range(x.ndim - 1))
        self.amax = torch.maximum(self.amax, x.abs().amax(others))
        self.amax_let = torch.maximum(self.amax_let, transformed.abs().amax(others))

    def statistics(self) -> dict[str, Any]:
        """Of the layer over all pictures, JSON-able.

        histogram: BINS counts of x~ from BEYOND below the range to BEYOND above it; the outermost hold what lies
        further. seen_min, seen_max: of x~. clipped_low, clipped_high: parts of x~ outside the range. input_sqnr_db,
        output_sqnr_db: see above. outlier_ratio, outlier_ratio_let: the largest channel's reach over the median
        channel's, of x and of x~. outlier_channels: those that reach furthest, the furthest first. channel_reach: the
        largest |x| by channel, channel_reach_let of x~.
        """
        return {
            "order": self._ticket.index(self.site),
            "histogram": [int(count) for count in self.counts],
            "seen_min": self.seen_min,
            "seen_max": self.seen_max,
            "clipped_low": self.clipped_low / self.count,
            "clipped_high": self.clipped_high / self.count,
            "input_sqnr_db": _sqnr_db(self.input_power, self.input_error),
            "output_sqnr_db": _sqnr_db(self.output_power, self.output_error),
            "outlier_ratio": _ratio(self.amax),
            "outlier_ratio_let": _ratio(self.amax_let),
            "outlier_channels": np.argsort(self.amax.tolist())[::-1][:OUTLIER_CHANNELS].tolist(),
            "channel_reach": self.amax.tolist(),
            "channel_reach_let": self.amax_let.tolist(),
        }


def _power(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x).double().square())


def _sqnr_db(power: float, error: float) -> float:
    if error == 0:
        return MAX_SQNR_DB
    return min(10 * math.log10(max(power, 1e-30) / error), MAX_SQNR_DB)


def _ratio(reach: torch.Tensor) -> float:
    return float(reach.max() / reach.median().clamp_min(1e-12))


@torch.no_grad()
def observe_layers(model: SRModel, calibration: Calibration, pictures: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Site -> `LayerObserver.statistics` of every layer that engines run on integers, over a tile a picture.

    Raises CalibrationError where the calibration is of another model, ImageError.
    """
    calibration.check_model(model.digest, model.spec.name)
    model = in_phases(model, calibration.phases)
    modules: dict[str, nn.Module] = {**integer_sites(model, calibration.parts)}
    ticket: list[str] = []
    observers = {
        site: LayerObserver(site, calibration.sites[site], layer, ticket)
        for site, layer in modules.items()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    tile_px = observed_tile_px(model.spec, calibration)
    tiles = (tiles_from_picture(path, model.spec, tile_px) for path in pictures)
    # The middle one of each picture.
    inputs = (torch.from_numpy(of_picture[len(of_picture) // 2][None]) for of_picture in tiles)
    run_observed(model, inputs, modules, observers)
    return {site: observer.statistics() for site, observer in observers.items() if site in ticket}


def observed_tile_px(spec: PictureSpec, calibration: Calibration) -> int:
    """Side of the low-resolution tiles that layers are measured on."""
    fits = TILE_PX * spec.upscale_factor % spec.size_multiple_px == 0
    return min(TILE_PX, calibration.tile_px) if fits else calibration.tile_px
