"""Linear layers and convolutions whose rows and columns take in what is constant around them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from intsr.calib.models.modules import copy_sharing_weights

L = TypeVar("L", nn.Linear, nn.Conv3d)


def affine(
    layer: L,
    *,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> L:
    """A layer that computes rows (W (columns x + shift) + b) + offset of x, all of them one number a channel.

    A convolution must be 1x1x1: where the input is padded, a shift is none of its bias.
    """
    assert isinstance(layer, nn.Linear) or set(layer.kernel_size) == {1}
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    matrix = weight.flatten(1)
    if shift is not None:
        bias = bias + matrix @ shift
    if columns is not None:
        matrix = matrix * columns
    if rows is not None:
        matrix, bias = rows[:, None] * matrix, rows * bias
    if offset is not None:
        bias = bias + offset
    result = copy_sharing_weights(layer)
    result.weight = nn.Parameter(matrix.reshape(weight.shape), requires_grad=False)
    result.bias = nn.Parameter(bias, requires_grad=False)
    return result
