"""Layers as engines will compute them, differentiable: what training works on.

    x~ = (x - d) / s,   y = layer(Q(x~); Q(s W)) + b + W d

InputGrid holds s, d and the range of one input, which several layers may share; QuantizedLayer holds what belongs to
one layer's weights. Every learned number is a base, found by initialization, and a relative change, trained: a
range's ends change in units of its width, s by a factor, d in units of the channel's amax. One learning rate then
suits all layers. docs/theory.md, "LBQ" and "LET".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.models.families.sd21 import bits_of_site, concat_boundaries, input_groups, may_shift
from intsr.calib.models.modules import copy_sharing_weights, put_modules
from intsr.calib.models.sites import integer_sites
from intsr.kernels.layer_algebra import (
    fake_quantize_weight,
    over_outputs,
    padding_before_shift,
    row_range,
    run_layer,
    scaled_weight,
    shifted_bias,
    transform,
    weight_grid,
    weight_range,
)
from intsr.kernels.learned_range import quantize_in_range
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

# The narrowest range a grid may have: below it an fp16 engine could not hold the scale.
MIN_WIDTH = 1e-3
# Learned factors stay within e**4: further away fp16 loses digits.
MAX_LOG_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class GridSpec:
    """The limits of an input's grid."""

    channels: int
    # That the channels are on.
    axis: int
    bits: int
    symmetric: bool
    # A padded convolution adds zeros, which then need a code.
    holds_zero: bool
    # d may leave 0.
    may_shift: bool
    # Channel -> which learned (s, d) it uses, or None for no LET.
    segments: tuple[int, ...] | None


class InputGrid(nn.Module):
    """LET and range of one tensor: x (N, C, H, W) or (N, tokens, C) float32 -> Q((x - d) / s), same shape."""

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        self.spec = spec
        count = 0 if spec.segments is None else max(spec.segments) + 1
        self.register_buffer("base_low", torch.tensor(-1.0))
        self.register_buffer("base_high", torch.tensor(1.0))
        self.register_buffer("base_scale", torch.ones(spec.channels))
        self.register_buffer("base_shift", torch.zeros(spec.channels))
        self.register_buffer("amax", torch.ones(spec.channels))
        self.low, self.high = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.log_scale, self.shift = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.zeros(count))
        index = torch.tensor(spec.segments or (), dtype=torch.long)
        self.register_buffer("index", index, persistent=False)
        # Stage one of DQC: the range of what is seen, at every step anew.
        self.dynamic = False

    @property
    def has_let(self) -> bool:
        return self.spec.segments is not None

    def scale(self) -> torch.Tensor:
        """s, (C,), positive."""
        if not self.has_let:
            return self.base_scale
        factor = self.log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
        return self.base_scale * factor[self.index]

    def offset(self) -> torch.Tensor:
        """d, (C,)."""
        if not (self.has_let and self.spec.may_shift):
            return self.base_shift
        return self.base_shift + self.shift[self.index] * self.amax

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned range of x~."""
        width = self.base_high - self.base_low
        low, high = self.base_low + self.low * width, self.base_high + self.high * width
        return self._admissible(low, high)

    def _admissible(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.spec.symmetric:
            half = 2 ** (self.spec.bits - 1)
            # Of a range that is already symmetric the low end is one step further out: no wider for that.
            amax = torch.maximum(-low * ((half - 1) / half), high).clamp_min(MIN_WIDTH)
            return -amax * (half / (half - 1)), amax
        if self.spec.holds_zero:
            low, high = low.clamp_max(0), high.clamp_min(0)
        return low, torch.maximum(high, low + MIN_WIDTH)

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """x~ = (x - d) / s."""
        if not self.has_let:
            return x
        return transform(x, self.scale(), self.offset() if self.spec.may_shift else None, self.spec.axis)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Q of an x that is transformed already."""
        low, high = self._admissible(x.amin(), x.amax()) if self.dynamic else self.range()
        return quantize_in_range(x, low, high, self.spec.bits)

    @torch.no_grad()
    def set_range(self, low: float, high: float) -> None:
        """A new base; what was learned of the range is forgotten."""
        ends = self._admissible(*torch.tensor([low, high], dtype=torch.float32, device=self.base_low.device))
        self.base_low.copy_(ends[0])
        self.base_high.copy_(ends[1])
        self.low.zero_()
        self.high.zero_()

    @torch.no_grad()
    def set_let(self, scale: torch.Tensor, shift: torch.Tensor, amax: torch.Tensor) -> None:
        """A new base of s, d and the amax that d moves in, (C,) each; what was learned of them is forgotten."""
        for buffer, value in ((self.base_scale, scale), (self.base_shift, shift), (self.amax, amax)):
            buffer.copy_(value)
        self.log_scale.zero_()
        self.shift.zero_()


class QuantizedLayer(nn.Module):
    """A Conv2d or Linear on an InputGrid, with its own grid for every output channel's weights.

    The layer's own weight and bias stay as they are.
    """

    def __init__(self, site: str, layer: nn.Conv2d | nn.Linear, grid: InputGrid, weight_bits: int) -> None:
        super().__init__()
        self.site, self.layer, self.grid, self.weight_bits = site, layer, grid, weight_bits
        rows = layer.weight.shape[0]
        for name, start in (("base_weight_low", -1.0), ("base_weight_high", 1.0)):
            self.register_buffer(name, torch.full((rows,), start))
        self.weight_low, self.weight_high = nn.Parameter(torch.zeros(rows)), nn.Parameter(torch.zeros(rows))
        # What a method adds: W~ -> the weights that are quantized; (W~ / D, hard) -> codes, before they are clamped.
        self.weight_change: nn.Module | None = None
        self.rounding: nn.Module | None = None
        self.hard_rounding = False
        self.dynamic_weights = False
        self.padding = padding_before_shift(layer) if grid.spec.may_shift else ()

    def scaled_weight(self) -> torch.Tensor:
        """W~ = s W, and what a method changes of it."""
        weight = self.layer.weight
        if self.grid.has_let:
            weight = scaled_weight(weight, self.grid.scale())
        if self.weight_change is not None:
            weight = self.weight_change(weight)
        return weight

    def weight_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned range of every output channel's weights, (Cout,) each."""
        width = self.base_weight_high - self.base_weight_low
        low, high = self.base_weight_low + self.weight_low * width, self.base_weight_high + self.weight_high * width
        return weight_range(low, high, self.weight_bits)

    def quantized_weight(self) -> torch.Tensor:
        """Q(W~), the layer's shape."""
        weight = self.scaled_weight()
        if self.rounding is not None:
            return self._rounded(weight, self.hard_rounding)
        ends = row_range(weight) if self.dynamic_weights else self.weight_range()
        low, high = (over_outputs(end, weight) for end in ends)
        return fake_quantize_weight(weight, low, high, self.weight_bits)

    def weight_grid(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(D, first code, number of steps) of the learned range; D and the code have the weight's rank."""
        low, high = (over_outputs(end, self.layer.weight) for end in self.weight_range())
        return weight_grid(low, high, self.weight_bits)

    def _rounded(self, weight: torch.Tensor, hard: bool) -> torch.Tensor:
        """Q(W~) where rounding is learned."""
        assert self.rounding is not None
        scale, first, steps = self.weight_grid()
        codes = self.rounding(weight / scale, hard)
        return torch.minimum(torch.maximum(codes, first), first + steps) * scale

    def requires_grad_learned(self, requires: bool) -> None:
        """Hold everything that is learned of this layer, or let all of it change."""
        for name, parameter in self.named_parameters():
            if not name.startswith("layer."):
                parameter.requires_grad_(requires)

    def input_seen(self, x: torch.Tensor) -> torch.Tensor:
        """x~, padded where that comes first: what the grid quantizes."""
        if any(self.padding):
            x = functional.pad(x, self.padding)
        return self.grid.transform(x)

    def bias(self) -> torch.Tensor | None:
        """b + W d."""
        if not (self.grid.has_let and self.grid.spec.may_shift):
            return self.layer.bias
        return shifted_bias(self.layer.bias, self.layer.weight, self.grid.offset())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_layer(self.grid.quantize(self.input_seen(x)), self.quantized_weight())

    def apply_layer(self, x: torch.Tensor, weight: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        """The bare layer on x~, with a given W~."""
        bias = self.bias() if with_bias else None
        return run_layer(self.layer, x, weight, bias, padded=self.grid.spec.may_shift)

    @torch.no_grad()
    def set_weight_range(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """A new base, (Cout,) each; what was learned of the range is forgotten."""
        self.base_weight_low.copy_(low)
        self.base_weight_high.copy_(high)
        self.weight_low.zero_()
        self.weight_high.zero_()

    @torch.no_grad()
    def site_quantizer(self) -> SiteQuantizer:
        """Return the numbers that were learned, and change nothing."""
        low, high = (float(end) for end in self.grid.range())
        arrays: dict[str, Any] = {}
        if self.grid.has_let:
            arrays |= {"let_scale": _array(self.grid.scale()), "let_shift": _array(self.grid.offset())}
        if self.rounding is None and self.weight_change is None:
            ends = self.weight_range()
            arrays |= {"weight_low": _array(ends[0]), "weight_high": _array(ends[1])}
        else:
            scale, _, _ = self.weight_grid()
            rounded = (
                self.quantized_weight() if self.rounding is None else self._rounded(self.scaled_weight(), hard=True)
            )
            codes = (rounded / scale).round()
            arrays |= {"weight_codes": _array(codes, np.int8), "weight_scale": _array(scale.flatten())}
        return SiteQuantizer(low, high, self.grid.spec.bits, self.weight_bits, **arrays)


def _array(tensor: torch.Tensor, dtype: type[np.generic] = np.float32) -> Any:
    return tensor.detach().cpu().numpy().astype(dtype)


def grid_spec(
    site: str, layer: nn.Conv2d | nn.Linear, bits: int, let: str, *, symmetric: bool, seam: int
) -> GridSpec:
    """let: `channel` for s and d of each input channel, `part` for one pair each side of a concat's seam, `none`."""
    channels = layer.weight.shape[1]
    segments: tuple[int, ...] | None = None
    if let == "channel":
        segments = tuple(range(channels))
    elif let == "part" and seam and not symmetric:
        segments = (0,) * seam + (1,) * (channels - seam)
    padded = isinstance(layer, nn.Conv2d) and any(layer.padding if isinstance(layer.padding, tuple) else ())
    shifts = segments is not None and may_shift(site) and not symmetric
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    return GridSpec(channels, axis, bits, symmetric, padded and not shifts, shifts, segments)


def quantized_layers(
    model: SRModel, bits: Bits, parts: tuple[str, ...], let: str, symmetric: bool
) -> dict[str, QuantizedLayer]:
    """A QuantizedLayer for every integer site of `parts`, in module order; input groups share grids, not set yet."""
    sites = integer_sites(model, parts)
    seams = concat_boundaries(model.unet)
    layers = {}
    for group in input_groups(sites):
        first = group[0]
        grid_bits, seam = bits_of_site(first, bits)[1], seams.get(first, 0)
        spec = grid_spec(first, sites[first], grid_bits, let, symmetric=symmetric, seam=seam)
        grid = InputGrid(spec)
        for site in group:
            layers[site] = QuantizedLayer(site, sites[site], grid, bits_of_site(site, bits)[0])
    return {site: layers[site] for site in sites}


def with_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a reference network, sharing its parameters, in which `layers` take their sites' places."""
    module = copy_sharing_weights(network)
    put_modules(module, layers)
    return module
