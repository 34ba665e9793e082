"""Where training starts: LET and clipping ranges of one block's layers, from what those layers are given.

Training at the published rates hardly moves a range, so that initialization decides: clipping ranges are searched,
and so is LET's exponent. docs/theory.md, "Clip search".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from intsr.calib.learn.blocks import ActivationStatistics, statistics_of
from intsr.calib.learn.clip_search import (
    COARSE,
    FINE,
    lsq_activation_range,
    lsq_weight_range,
    sample_values,
    search_activation_range,
    search_weight_range,
)
from intsr.calib.learn.input_grid import InputGrid
from intsr.calib.learn.quantized_layer import QuantizedLayer
from intsr.calib.models.families.sd21 import reads_bare_stream
from intsr.calib.observe.let_scales import let_scale_from_maxima, weight_amax
from intsr.errors import CalibrationError
from intsr.kernels.draq import STATIC
from intsr.kernels.layer_algebra import over_inputs, row_range

# Exponents of s = max|x_c|**a / max|W_c|**b that are tried; PassionSR starts at 0.3.
LET_EXPONENTS = tuple((a, a) for a in (0.0, 0.3, 0.5, 0.7))
# Shares of a channel's middle that d starts at.
LET_SHIFTS = (0.0, 1.0)
# What both ends of a range are multiplied by, and then each end by itself.
FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
END_FACTORS = (1.0, 0.94, 0.88, 0.8)
ROUGH_FACTORS = (1.0, 0.85, 0.7)
WHOLE_GUARD_BITS = 8


@dataclass(frozen=True, slots=True)
class RangeInit:
    """rule: `output` for the least error behind the layer, `values` for the least error of the values themselves to
    the given power, `lsq` for LSQ's rule. let: whether the grids have s and d for each channel: searched too, among
    s = max|x_c|**a / max|W_c|**b with `exponents` (a, b).
    """

    rule: str = "output"
    power: float = 2.0
    let: bool = False
    exponents: tuple[tuple[float, float], ...] = LET_EXPONENTS


def group_layers(layers: Sequence[QuantizedLayer]) -> list[list[QuantizedLayer]]:
    """Layers by the grid that they share."""
    groups: dict[int, list[QuantizedLayer]] = {}
    for layer in layers:
        groups.setdefault(id(layer.grid), []).append(layer)
    return list(groups.values())


@torch.no_grad()
def initialize(
    layers: Sequence[QuantizedLayer], inputs: Mapping[str, ActivationStatistics], start: RangeInit, seed: int
) -> None:
    """Set every base of the layers' grids. inputs: site -> what that layer is given.

    Raises CalibrationError for inputs that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    for group in group_layers(layers):
        seen = inputs[group[0].site]
        if not bool(torch.isfinite(torch.cat([seen.low, seen.high])).all()):
            raise CalibrationError(group[0].site, "NaN or infinity in its input", "finite activations")
        if start.let:
            _search_let(group, seen, start, generator)
        elif group[0].grid.has_let:
            _equalize_parts(group[0].grid, seen)
        _decompose(group)
        set_ranges(group, seen, start, generator)


def _decompose(group: Sequence[QuantizedLayer]) -> None:
    """Branches to what they are best at where s is as it is."""
    for layer in group:
        if layer.branch is not None:
            layer.branch.decompose(layer.layer.weight, layer.grid.scale())


@torch.no_grad()
def set_ranges(
    group: Sequence[QuantizedLayer],
    seen: ActivationStatistics,
    start: RangeInit,
    generator: torch.Generator,
    rough: bool = False,
) -> None:
    """Ranges of one grid, and of its layers' weights, with s and d as they are. rough: enough to compare two LETs."""
    grid = group[0].grid
    transformed = [group[0].input_seen(x) for x in seen.values]
    if grid.spec.form != STATIC:
        for layer in group:
            layer.set_weight_range(
                *_weight_range_by_output(layer, transformed, _mean_squares(grid, seen.values), rough)
            )
        return
    ends = _ends_seen(group[0], seen.low, seen.high)
    floor = _guard_floor(group[0], seen)
    ends = min(ends[0], floor[0]), max(ends[1], floor[1])
    if start.rule == "output":
        grid.set_range(*_range_by_output(group, transformed, ends, floor, rough))
        importance = _mean_squares(grid, seen.values)
        for layer in group:
            layer.set_weight_range(*_weight_range_by_output(layer, transformed, importance, rough))
        return
    values = torch.cat([sample_values(x, generator) for x in transformed])
    if start.rule == "lsq":
        grid.set_range(*lsq_activation_range(values, grid.spec.bits))
        for layer in group:
            layer.set_weight_range(*lsq_weight_range(layer.scaled_weight(), layer.weight_bits))
        return
    # What only passed by, where it reached further.
    beyond = [end for end in ends if not values.min() <= end <= values.max()]
    values = torch.cat([values, values.new_tensor(beyond)])
    low, high = search_activation_range(values, grid.spec.bits, grid.spec.symmetric, start.power)
    grid.set_range(min(low, floor[0]), max(high, floor[1]))
    for layer in group:
        layer.set_weight_range(*search_weight_range(layer.scaled_weight(), layer.weight_bits, None, start.power))


def _range_by_output(
    group: Sequence[QuantizedLayer],
    transformed: Sequence[torch.Tensor],
    ends: tuple[float, float],
    floor: tuple[float, float],
    rough: bool,
) -> tuple[float, float]:
    """The range between `floor` and `ends` whose rounding and clipping error, seen behind the layers, is least.

    Behind the layers and not in the input itself: clipped values all err in one direction, and what a sum over
    hundreds of channels and taps makes of that is far more than of rounding errors of the same size.
    """
    grid = group[0].grid
    low, high = min(0.0, ends[0]), max(0.0, ends[1])
    weights = [layer.scaled_weight() for layer in group]

    def shrunk(low_factor: float, high_factor: float) -> tuple[float, float]:
        return min(low * low_factor, floor[0]), max(high * high_factor, floor[1])

    def error(low_factor: float, high_factor: float) -> float:
        grid.set_range(*shrunk(low_factor, high_factor))
        total = 0.0
        for x in transformed:
            difference = grid.quantize(x) - x
            for layer, weight in zip(group, weights, strict=True):
                total += float(layer.apply_layer(difference, weight, with_bias=False).square().mean())
        return total

    both = ROUGH_FACTORS if rough else FACTORS
    factor = min(both, key=lambda f: error(f, f))
    best = (factor, factor)
    if not rough and not grid.spec.symmetric:
        best = min(((f * factor, factor) for f in END_FACTORS), key=lambda pair: error(*pair))
        best = min(((best[0], f * factor) for f in END_FACTORS), key=lambda pair: error(*pair))
    return shrunk(*best)


def _weight_range_by_output(
    layer: QuantizedLayer, probes: Sequence[torch.Tensor], importance: torch.Tensor, rough: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The searched range of every row, or the rows' own ends where the layer's output prefers those."""
    weight, bits = layer.scaled_weight(), layer.weight_bits
    candidates = [search_weight_range(weight, bits, importance, factors_tried=COARSE if rough else FINE)]
    if not rough:
        candidates.append(row_range(weight))

    def error(ends: tuple[torch.Tensor, torch.Tensor]) -> float:
        layer.set_weight_range(*ends)
        difference = layer.quantized_weight() - weight
        return sum(float(layer.apply_layer(x, difference, with_bias=False).square().mean()) for x in probes)

    return candidates[0] if len(candidates) == 1 else min(candidates, key=error)


def _mean_squares(grid: InputGrid, seen: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of x~_c**2, (C,)."""
    axis = grid.spec.axis
    sums = [grid.transform(x).movedim(axis, 0).flatten(1).square().mean(1) for x in seen]
    return torch.stack(sums).mean(0)


def _ends_seen(layer: QuantizedLayer, low: torch.Tensor, high: torch.Tensor) -> tuple[float, float]:
    """The least and greatest transformed value where channels reach from `low` to `high`, (C,); of padding too."""
    if any(layer.padding):
        low, high = low.clamp_max(0), high.clamp_min(0)
    low, high = (layer.grid.transform(over_inputs(end, layer.layer.weight)) for end in (low, high))
    return float(low.min()), float(high.max())


def _guard_floor(layer: QuantizedLayer, seen: ActivationStatistics) -> tuple[float, float]:
    """Return what no search goes below: the mean over the guard's pictures of each one's range, or all of it.

    All of it on a bare stream, which nothing norms: what is clipped there is lost, a flat colour's whole level. And
    with 8 bits, which have codes to spare for the corner of a flat tile, many deviations from its mean.
    """
    if seen.guard is None:
        return 0.0, 0.0
    ends = [_ends_seen(layer, low, high) for low, high in zip(*seen.guard, strict=True)]
    lows, highs = zip(*ends, strict=True)
    if reads_bare_stream(layer.site) or layer.grid.spec.bits >= WHOLE_GUARD_BITS:
        return min(lows), max(highs)
    return sum(lows) / len(lows), sum(highs) / len(highs)


def _equalize_parts(grid: InputGrid, seen: ActivationStatistics) -> None:
    """Each side of a concatenation onto a common grid: s from the ratio of their widths, d from their middles.

    Half of the ratio (in logarithms): the weights, multiplied by s, share one grid too and pay for it.
    """
    low, high = seen.low, seen.high
    ends = torch.zeros(2, int(grid.index.max()) + 1, device=low.device)
    for part in range(ends.shape[1]):
        chosen = grid.index == part
        ends[0, part], ends[1, part] = low[chosen].min(), high[chosen].max()
    width = (ends[1] - ends[0]).clamp_min(1e-6)
    scale = (width / width.max()).sqrt()
    middle = (ends[0] + ends[1]) / 2 if grid.spec.may_shift else torch.zeros_like(width)
    grid.set_let(scale[grid.index], middle[grid.index], width[grid.index])


def _search_let(
    group: Sequence[QuantizedLayer], seen: ActivationStatistics, start: RangeInit, generator: torch.Generator
) -> None:
    """The exponent and the shift whose quantized products differ least from the exact ones, on the first inputs."""
    grid = group[0].grid
    low, high = seen.low, seen.high
    amax = (high - low).clamp_min(1e-6)
    tried = replace(statistics_of(seen.values[:1]), guard=seen.guard)
    exact = [[layer.layer(x) for x in tried.values] for layer in group]
    weight = weight_amax(layer.layer.weight for layer in group)
    best: tuple[float, torch.Tensor, torch.Tensor] | None = None
    for share in LET_SHIFTS if grid.spec.may_shift else (0.0,):
        shift = (low + high) / 2 * share
        magnitude = torch.maximum((low - shift).abs(), (high - shift).abs())
        for exponents in start.exponents:
            scale = let_scale_from_maxima(magnitude, weight, *exponents)
            grid.set_let(scale, shift, amax)
            _decompose(group)
            set_ranges(group, tried, start, generator, rough=True)
            error = sum(
                float((layer(x) - y).square().mean() / y.square().mean().clamp_min(1e-12))
                for layer, outputs in zip(group, exact, strict=True)
                for x, y in zip(tried.values, outputs, strict=True)
            )
            if best is None or error < best[0]:
                best = error, scale, shift
    assert best is not None
    grid.set_let(best[1], best[2], amax)
