"""A specialized network of a video model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from intsr.calib.models.video_spec import VideoSpec


@dataclass(frozen=True, slots=True)
class SpecializedVideoNetwork:
    """A torch module of tensors alone, and what specialization did to its weights.

    name: encoder, transformer or decoder. row_factors, column_factors: site -> what the rows (output channels) and
    columns (input channels) of its weights were multiplied by, one number each. plain_weights: site -> its weights
    before rows were multiplied.
    """

    name: str
    module: nn.Module
    spec: VideoSpec
    row_factors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    column_factors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    plain_weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
