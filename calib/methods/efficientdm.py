"""EfficientDM: low-rank changes merged into the weights before these are quantized.

    W^ = Q(W~ + B A)

The published rates are absolute and small, for many more steps: here they are those of ranges and of LOW_RANK.
docs/theory.md, "Other methods".
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import RANGES, Kind, Method, Stage
from intsr.calib.learn.quantized_layer import QuantizedLayer

# The rank, and at most this share of a layer's smaller side.
RANK, RANK_SHARE = 32, 2


class LowRankChange(nn.Module):
    """W~ + B A, W~'s shape."""

    def __init__(self, b: torch.Tensor, a: torch.Tensor) -> None:
        """b: (rows, rank). a: (rank, columns)."""
        super().__init__()
        self.b, self.a = nn.Parameter(b), nn.Parameter(a)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        # What is trained is what is exported: not autocast's product.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.b @ self.a).reshape(weight.shape)


def add_low_rank(layer: QuantizedLayer, seed: int) -> None:
    """Give the layer B = 0, and A as a linear layer starts."""
    if layer.weight_change is not None:
        return
    weight = layer.layer.weight
    rows, columns = weight.shape[0], weight[0].numel()
    rank = max(1, min(RANK, min(rows, columns) // RANK_SHARE))
    digest = hashlib.sha256(f"{seed} {layer.site}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    a = (torch.rand(rank, columns, generator=generator) * 2 - 1) * (1 / math.sqrt(columns))
    layer.weight_change = LowRankChange(torch.zeros(rows, rank, device=weight.device), a.to(weight.device))


LOW_RANK = Kind(
    "low_rank",
    5e-4,
    lambda layers: [
        p for layer in layers if layer.weight_change is not None for p in layer.weight_change.parameters()
    ],
    add_low_rank,
)
METHOD = Method(
    "efficientdm",
    let="part",
    start=RangeInit("output"),
    joint=(Stage("low rank", (*RANGES, LOW_RANK), share=1.1),),
)
