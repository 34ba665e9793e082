"""What each calibrated layer does to its own input and output, measured on pictures through the float model.

    x~ = (x - d) / s,   y = W~ x~ + W d + b,   y^ = Q(W~) Q(x~) + W d + b,   W~ = s W

SQNR is 10 log10 of signal power over the power of the difference: of the input, x~ against Q(x~), and of the output,
y against y^. Each layer is measured alone, on what full precision gives it: errors of others are not in its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.data.pictures import tiles_from_picture
from intsr.calib.models.families.sites import integer_sites
from intsr.calib.observe.hooks import run_observed
from intsr.kernels.quantizer import dequantize_weight, fake_quantize_torch, quantize_weight, quantize_weight_in_range
from intsr.types import ModelSpec

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

BINS = 64
# Histograms reach this part of the range's width beyond either end.
BEYOND = 0.25
MAX_SQNR_DB = 120.0
OUTLIER_CHANNELS = 5
# Many pictures say more than large tiles, and take as long.
TILE_PX = 64


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Of one layer over all pictures.

    histogram: BINS counts of x~ from BEYOND below the range to BEYOND above it; the outermost hold what lies further.
    seen_min, seen_max: of x~. clipped_low, clipped_high: parts of x~ outside the range. input_sqnr_db,
    output_sqnr_db: see above. outlier_ratio, outlier_ratio_let: the largest channel's reach over the median
    channel's, of x and of x~. channel_reach: the largest |x| by channel, channel_reach_let of x~.
    """

    site: str
    order: int
    histogram: tuple[int, ...]
    seen_min: float
    seen_max: float
    clipped_low: float
    clipped_high: float
    input_sqnr_db: float
    output_sqnr_db: float
    outlier_ratio: float
    outlier_ratio_let: float
    channel_reach: tuple[float, ...]
    channel_reach_let: tuple[float, ...]

    @property
    def outlier_channels(self) -> list[int]:
        """Those that reach furthest, the furthest first."""
        return [int(i) for i in np.argsort(self.channel_reach)[::-1][:OUTLIER_CHANNELS]]


class LayerObserver:
    """A forward pre-hook of one layer; sums only are kept, never an activation."""

    def __init__(self, site: str, quantizer: SiteQuantizer, layer: nn.Conv2d | nn.Linear, ticket: list[str]) -> None:
        self.site, self.layer, self.quantizer, self._ticket = site, layer, quantizer, ticket
        self.params = quantizer.activation_params()
        self.weight = _scaled_weight(layer, quantizer)
        self.quantized_weight = _quantized_weight(self.weight, quantizer)
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.seen_min, self.seen_max = math.inf, -math.inf
        self.clipped_low = self.clipped_high = self.count = 0
        self.input_power = self.input_error = self.output_power = self.output_error = 0.0
        self.reach = torch.zeros(layer.weight.shape[1])
        self.reach_let = torch.zeros(layer.weight.shape[1])

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.site not in self._ticket:
            self._ticket.append(self.site)
        x = inputs[0].detach().float()
        transformed, padding = self._transformed(x)
        quantized = fake_quantize_torch(transformed, self.params)
        self._see_input(x, transformed, quantized)
        y = self._apply(transformed, self.weight, padding)
        error = y - self._apply(quantized, self.quantized_weight, padding)
        self.output_error += _power(error)
        self.output_power += _power(y + self._owed(y))

    def _see_input(self, x: torch.Tensor, transformed: torch.Tensor, quantized: torch.Tensor) -> None:
        low, high = self.quantizer.x_min, self.quantizer.x_max
        width = max(high - low, 1e-12)
        ends = (low - BEYOND * width, high + BEYOND * width)
        self.counts += torch.histc(transformed.clamp(*ends), BINS, *ends)
        seen_min, seen_max = (float(end) for end in transformed.aminmax())
        self.seen_min, self.seen_max = min(self.seen_min, seen_min), max(self.seen_max, seen_max)
        # Half a step beyond the ends still rounds to them.
        half = self.params.scale / 2
        self.clipped_low += int((transformed < self.params.real_min - half).count_nonzero())
        self.clipped_high += int((transformed > self.params.real_max + half).count_nonzero())
        self.count += transformed.numel()
        self.input_power += _power(transformed)
        self.input_error += _power(transformed - quantized)
        others = (0, 2, 3) if x.ndim == 4 else tuple(range(x.ndim - 1))
        self.reach = torch.maximum(self.reach, x.abs().amax(others))
        self.reach_let = torch.maximum(self.reach_let, transformed.abs().amax(others))

    def _transformed(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """x~, and the padding that is left to the layer: with a shift, zeros of x come before it."""
        padding = self.layer.padding if isinstance(self.layer, nn.Conv2d) else 0
        s, d = self.quantizer.let_scale, self.quantizer.let_shift
        if s is None or d is None:
            return x, padding
        shape = (1, -1, 1, 1) if isinstance(self.layer, nn.Conv2d) else (-1,)
        if d.any() and isinstance(self.layer, nn.Conv2d):
            assert isinstance(padding, tuple)
            x, padding = functional.pad(x, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
        return (x - torch.tensor(d).reshape(shape)) / torch.tensor(s).reshape(shape), padding

    def _apply(self, x: torch.Tensor, weight: torch.Tensor, padding: Any) -> torch.Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, None, layer.stride, padding, layer.dilation, layer.groups)

    def _owed(self, y: torch.Tensor) -> torch.Tensor:
        """W d + b, in the shape that adds to y."""
        weight = self.layer.weight.detach()
        owed = torch.zeros(weight.shape[0]) if self.layer.bias is None else self.layer.bias.detach()
        if self.quantizer.let_shift is not None:
            shift = torch.tensor(self.quantizer.let_shift).reshape(1, -1, *[1] * (weight.ndim - 2))
            owed = owed + (weight * shift).flatten(1).sum(1)
        return owed.reshape(1, -1, 1, 1) if y.ndim == 4 else owed

    def statistics(self) -> LayerStatistics:
        return LayerStatistics(
            self.site,
            self._ticket.index(self.site),
            tuple(int(count) for count in self.counts),
            self.seen_min,
            self.seen_max,
            self.clipped_low / self.count,
            self.clipped_high / self.count,
            _sqnr_db(self.input_power, self.input_error),
            _sqnr_db(self.output_power, self.output_error),
            _ratio(self.reach),
            _ratio(self.reach_let),
            tuple(float(value) for value in self.reach),
            tuple(float(value) for value in self.reach_let),
        )


def _scaled_weight(layer: nn.Conv2d | nn.Linear, quantizer: SiteQuantizer) -> torch.Tensor:
    """W~ = s W."""
    weight = layer.weight.detach().float()
    if quantizer.let_scale is None:
        return weight
    return weight * torch.tensor(quantizer.let_scale).reshape(1, -1, *[1] * (weight.ndim - 2))


def _quantized_weight(weight: torch.Tensor, quantizer: SiteQuantizer) -> torch.Tensor:
    """Q(W~), as `fold` takes it: learned codes, learned ranges, or each channel's own largest."""
    if quantizer.weight_codes is not None and quantizer.weight_scale is not None:
        return torch.from_numpy(dequantize_weight(quantizer.weight_codes, quantizer.weight_scale))
    if quantizer.weight_low is not None and quantizer.weight_high is not None:
        ends = (quantizer.weight_low, quantizer.weight_high)
        codes, scale = quantize_weight_in_range(weight.numpy(), *ends, quantizer.weight_bits)
    else:
        codes, scale = quantize_weight(weight.numpy(), quantizer.weight_bits)
    return torch.from_numpy(dequantize_weight(codes, scale))


def _power(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x).double().square())


def _sqnr_db(power: float, error: float) -> float:
    if error == 0:
        return MAX_SQNR_DB
    return min(10 * math.log10(max(power, 1e-30) / error), MAX_SQNR_DB)


def _ratio(reach: torch.Tensor) -> float:
    return float(reach.max() / reach.median().clamp_min(1e-12))


@torch.no_grad()
def observe_layers(
    model: SRModel, calibration: Calibration, pictures: Sequence[Path], limit: int
) -> Mapping[str, LayerStatistics]:
    """Site -> statistics of every layer that engines run on integers, over one tile of each of `limit` pictures.

    Raises CalibrationError where the calibration is of another model, ImageError.
    """
    calibration.check_model(model.digest, model.spec.name)
    modules: dict[str, nn.Module] = {**integer_sites(model, calibration.parts)}
    ticket: list[str] = []
    observers = {
        site: LayerObserver(site, calibration.sites[site], layer, ticket)
        for site, layer in modules.items()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    inputs = _middle_tiles(islice(pictures, limit), model.spec, observed_tile_px(model.spec, calibration))
    run_observed(model, inputs, modules, observers)
    return {site: observer.statistics() for site, observer in observers.items() if site in ticket}


def observed_tile_px(spec: ModelSpec, calibration: Calibration) -> int:
    """Side of the low-resolution tiles that layers are measured on."""
    fits = TILE_PX * spec.upscale_factor % spec.size_multiple_px == 0
    return min(TILE_PX, calibration.tile_px) if fits else calibration.tile_px


def _middle_tiles(pictures: Iterable[Path], spec: ModelSpec, tile_px: int) -> Iterator[torch.Tensor]:
    """(1, 3, S, S) float32 in [-1, 1] of each picture."""
    for path in pictures:
        tiles = tiles_from_picture(path, spec, tile_px)
        yield torch.from_numpy(tiles[len(tiles) // 2][None])
