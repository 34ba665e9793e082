"""What a stage needs around its training: parameters made before it, rates, and what is settled after it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from intsr.calib.learn.quantized_layer import ROUND_HIGH, ROUND_LOW, QuantizedLayer
from intsr.calib.methods.plans import Stage

# EfficientDM's rank, and at most this share of a layer's smaller side.
LOW_RANK, LOW_RANK_SHARE = 32, 2
# AdaRound: weight of the penalty, and the exponent that makes it steeper as training goes on.
ROUND_WEIGHT, ROUND_FIRST_POWER, ROUND_LAST_POWER, ROUND_WARM_UP = 0.01, 20.0, 2.0, 0.2


def prepare(stage: Stage, layers: Sequence[QuantizedLayer], seed: int) -> None:
    """Make the parameters that only this stage's method has, at values that change nothing."""
    for layer in layers:
        if "rounding" in stage.trains and layer.rounding is None:
            layer.rounding = nn.Parameter(_rounding_logits(layer))
        if "low_rank" in stage.trains and layer.low_rank is None:
            layer.low_rank = _low_rank(layer, seed)


@torch.no_grad()
def _rounding_logits(layer: QuantizedLayer) -> torch.Tensor:
    """Logits whose h is each weight's own fraction: learning starts at what the weights are."""
    scale, _, _ = layer.weight_grid()
    codes = layer.scaled_weight() / scale
    fraction = ((codes - codes.floor()) - ROUND_LOW) / (ROUND_HIGH - ROUND_LOW)
    return torch.logit(fraction.clamp(1e-4, 1 - 1e-4))


def _low_rank(layer: QuantizedLayer, seed: int) -> nn.ParameterList:
    """B = 0 and A as a linear layer starts. Source: METHODS section 6, EfficientDM."""
    weight = layer.layer.weight
    rows, columns = weight.shape[0], weight[0].numel()
    rank = max(1, min(LOW_RANK, min(rows, columns) // LOW_RANK_SHARE))
    digest = hashlib.sha256(f"{seed} {layer.site}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    bound = 1 / math.sqrt(columns)
    a = (torch.rand(rank, columns, generator=generator) * 2 - 1) * bound
    device = weight.device
    return nn.ParameterList([nn.Parameter(torch.zeros(rows, rank, device=device)), nn.Parameter(a.to(device))])


def conclude(stage: Stage, layers: Sequence[QuantizedLayer]) -> None:
    """After the stage, trained or restored."""
    if "rounding" in stage.trains:
        for layer in layers:
            layer.hard_rounding = True


@contextmanager
def hard(layers: Sequence[QuantizedLayer]) -> Iterator[None]:
    """Learned rounding as it will be: what held-out pictures judge."""
    before = [layer.hard_rounding for layer in layers]
    for layer in layers:
        layer.hard_rounding = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.hard_rounding = value


def rounding_penalty(layers: Sequence[QuantizedLayer], done: float) -> torch.Tensor:
    """What pushes h to 0 or 1: mean of 1 - |2h - 1|**power, none in the first fifth. Source: AdaRound."""
    if done < ROUND_WARM_UP:
        return torch.zeros((), device=layers[0].layer.weight.device)
    share = (done - ROUND_WARM_UP) / (1 - ROUND_WARM_UP)
    power = ROUND_LAST_POWER + (ROUND_FIRST_POWER - ROUND_LAST_POWER) * 0.5 * (1 + math.cos(math.pi * share))
    means = [(1 - (2 * layer.soft_rounding() - 1).abs().pow(power)).mean() for layer in layers]
    return ROUND_WEIGHT * torch.stack(means).mean()


def rates_of(
    stage: Stage, layers: Sequence[QuantizedLayer], factor: float
) -> tuple[tuple[tuple[nn.Parameter, ...], float], ...]:
    """Parameters with their rates, by kind; a grid that layers share is there once."""
    grids = {id(layer.grid): layer.grid for layer in layers}.values()
    kinds: dict[str, list[nn.Parameter]] = {
        "input_range": [p for grid in grids for p in (grid.low, grid.high)],
        "weight_range": [p for layer in layers for p in (layer.weight_low, layer.weight_high)],
        "let": [p for grid in grids if grid.has_let for p in (grid.log_scale, grid.shift)],
        "rounding": [layer.rounding for layer in layers if layer.rounding is not None],
        "low_rank": [p for layer in layers if layer.low_rank is not None for p in layer.low_rank],
    }
    for kind, parameters in kinds.items():
        for parameter in parameters:
            parameter.requires_grad_(kind in stage.trains)
    return tuple((tuple(kinds[kind]), stage.rates[kind] * factor) for kind in stage.trains if kinds[kind])


def set_dynamic(layers: Sequence[QuantizedLayer], dynamic: bool) -> None:
    """Whether ranges follow what is seen (stage one of DQC)."""
    for layer in layers:
        layer.dynamic_weights = layer.grid.dynamic = dynamic


@contextmanager
def recomputed(network: nn.Module, units: Sequence[str]) -> Iterator[None]:
    """Within, each unit keeps its input alone for the backward pass, and runs a second time there."""
    modules = [network.get_submodule(name) for name in units]

    def wrap(forward):  # type: ignore[no-untyped-def]
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    for module in modules:
        module.forward = wrap(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
