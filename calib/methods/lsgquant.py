"""LSGQuant, of one-step video transformers: rotation, channel factors, a float branch, and trained weights.

    y = DRAQ(X H) . Q(H^T W_R) + X L1 L2 + b

DRAQ is static (`kernels.draq`): the factors s of rotated channels are in the integer weights. L1 L2 begins as the
best approximation of rank 32, and W_R as W - L1 L2; they and all ranges are trained together against full precision's
output (QAO), for as long as a layer's tier says (VOLTS, `learn.volts`). docs/theory.md, "LSGQuant", says what of this
is our own.
"""

from __future__ import annotations

import torch
from torch import nn

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import BRANCH, RANGES, VIDEO, Kind, Method, Stage
from intsr.calib.learn.quantized_layer import QuantizedLayer
from intsr.calib.learn.volts import CONVERGENCE, LIGHT

# (a, b) of s = max|x_c|**a / max|W_c|**b: no factors, half of DRAQ's, and DRAQ's own. With SmoothQuant's exponents
# beside them the start was further from exact: the error behind each layer alone does not say all.
FACTORS = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0))
# Of the joint steps: VOLTS's 30 iterations of a lightly trained layer where these are 120, and a round of those that
# are trained until they converge.
SHARE, ROUNDS = 0.25, 10
# A tenth of what few bits of picture models are trained by: four bits of a transformer start some 36 dB from exact,
# and steps of those would be larger than what is to be learned.
RATE = 0.1


class ResidualChange(nn.Module):
    """s H^T W_R as s H^T (W - L1 L2), plus what is learned, in steps of each row's grid."""

    def __init__(self, weight: torch.Tensor, step: torch.Tensor) -> None:
        """weight: for its shape. step: D of each row, of the weight's rank."""
        super().__init__()
        self.register_buffer("step", step)
        self.change = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.step * self.change


@torch.no_grad()
def add_residual_change(layer: QuantizedLayer, seed: int) -> None:
    """Give the layer a change of 0."""
    if layer.weight_change is None:
        layer.weight_change = ResidualChange(layer.layer.weight, layer.weight_grid()[0].clone())


RESIDUAL = Kind(
    "residual",
    3e-3,
    lambda layers: [
        p for layer in layers if layer.weight_change is not None for p in layer.weight_change.parameters()
    ],
    add_residual_change,
)
TRAINED = (*RANGES, BRANCH, RESIDUAL)
METHOD = Method(
    "lsgquant",
    let="channel",
    start=RangeInit("output", let=True, exponents=FACTORS),
    joint=(
        Stage("light", TRAINED, share=SHARE, tiers=(LIGHT, CONVERGENCE), rate=RATE),
        Stage("convergence", TRAINED, share=SHARE, tiers=(CONVERGENCE,), rounds=ROUNDS, rate=RATE),
    ),
    rank=32,
    rotated=True,
    searched_rotations=True,
    volts=True,
    kinds=(VIDEO,),
)
