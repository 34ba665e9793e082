"""Q-Diffusion: blocks reconstructed with learned rounding (AdaRound), then the steps of activations.

    W^ = (floor(W / D) + h) D,   h = clamp(sigmoid(v) (zeta - gamma) + gamma, 0, 1)

v is learned; a penalty pushes h to 0 or 1. docs/theory.md, "Other methods".
"""

from __future__ import annotations

import math

import torch
from torch import nn

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import INPUT_RANGE, Kind, Layers, Method, Stage
from intsr.calib.learn.quantized_layer import QuantizedLayer

# gamma and zeta, the ends of the stretched sigmoid.
LOW, HIGH = -0.1, 1.1
# The penalty's weight, and the exponent that makes it steeper as training goes on, after the first fifth.
WEIGHT, FIRST_POWER, LAST_POWER, WARM_UP = 0.01, 20.0, 2.0, 0.2


class LearnedRounding(nn.Module):
    """Codes of weights whose rounding is learned."""

    def __init__(self, logits: torch.Tensor) -> None:
        """logits: v, the weights' shape."""
        super().__init__()
        self.logits = nn.Parameter(logits)

    def soft(self) -> torch.Tensor:
        """h, how far each weight is rounded up, in [0, 1]."""
        return (self.logits.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)

    def forward(self, steps: torch.Tensor, hard: bool) -> torch.Tensor:
        """Round W / D, a tensor of steps; hard: to whole codes, as the engine will have them."""
        return steps.floor() + ((self.logits >= 0).float() if hard else self.soft())


@torch.no_grad()
def add_rounding(layer: QuantizedLayer, seed: int) -> None:
    """Give the layer logits whose h is each weight's own fraction: learning starts at what the weights are."""
    if layer.rounding is None:
        scale, _, _ = layer.weight_grid()
        steps = layer.scaled_weight() / scale
        fraction = ((steps - steps.floor()) - LOW) / (HIGH - LOW)
        layer.rounding = LearnedRounding(torch.logit(fraction.clamp(1e-4, 1 - 1e-4)))


def rounding_penalty(layers: Layers, done: float) -> torch.Tensor:
    """Return what pushes h to 0 or 1: the mean of 1 - |2h - 1|**power, none in the first fifth."""
    if done < WARM_UP:
        return torch.zeros((), device=layers[0].layer.weight.device)
    share = (done - WARM_UP) / (1 - WARM_UP)
    power = LAST_POWER + (FIRST_POWER - LAST_POWER) * 0.5 * (1 + math.cos(math.pi * share))
    modules = [layer.rounding for layer in layers]
    means = [(1 - (2 * m.soft() - 1).abs().pow(power)).mean() for m in modules if isinstance(m, LearnedRounding)]
    return WEIGHT * torch.stack(means).mean()


ROUNDING = Kind(
    "rounding",
    5e-2,
    lambda layers: [layer.rounding.logits for layer in layers if isinstance(layer.rounding, LearnedRounding)],
    add_rounding,
    rounding_penalty,
    rounds=True,
)
METHOD = Method(
    "qdiffusion",
    let="part",
    start=RangeInit("values", 2.4),
    block=(Stage("rounding", (ROUNDING,), share=8.8), Stage("input steps", (INPUT_RANGE,), share=2.2)),
)
