"""Which layers' inputs are better rotated: those whose products then come out nearer to the exact ones.

A rotation spreads what single channels reach beyond the others, and takes from factors of channels, and from inputs
of one sign as behind GELU, what these have won. Both kinds of layers are started on the same full-precision inputs,
each with its own branch, factors and ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from intsr.calib.learn.blocks import layer_statistics
from intsr.calib.learn.initialize import RangeInit, group_layers, initialize
from intsr.calib.learn.quantized_layer import QuantizedLayer
from intsr.calib.learn.stages import rotations_of
from intsr.kernels.rotation import rotate

# Crops that are looked at.
TRIED = 4
Layers = dict[str, QuantizedLayer]


@torch.no_grad()
def unrotated_sites(
    network: nn.Module,
    made: Callable[[bool], Layers],
    inputs: Sequence[torch.Tensor],
    start: RangeInit,
    seed: int,
) -> list[str]:
    """Return the first site of every group of layers that is better not rotated.

    made: rotated or not -> all layers of the network, not initialized. inputs: of the network, the first are taken.
    """
    errors = {rotated: _errors(network, made(rotated), inputs[:TRIED], start, seed) for rotated in (False, True)}
    return [site for site, error in errors[False].items() if error <= errors[True][site]]


def _errors(
    network: nn.Module, layers: Layers, inputs: Sequence[torch.Tensor], start: RangeInit, seed: int
) -> dict[str, float]:
    """First site of each group -> squared errors of its layers' outputs over the outputs' squares, summed."""
    plain = {site: network.get_submodule(site) for site in layers}
    seen = layer_statistics(network, plain, inputs, rotations=rotations_of(layers.values()))
    initialize(list(layers.values()), seen, start, seed)
    errors = {}
    for group in group_layers(list(layers.values())):
        first = group[0]
        # H is its own inverse.
        given = [rotate(x, first.grid.spec.rotation, first.grid.spec.axis) for x in seen[first.site].values]
        errors[first.site] = sum(_relative_error(layer, plain[layer.site], given) for layer in group)
    return errors


def _relative_error(layer: QuantizedLayer, plain: nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    exact = [plain(x) for x in inputs]
    error = sum(float((layer(x) - y).square().sum()) for x, y in zip(inputs, exact, strict=True))
    return error / max(sum(float(y.square().sum()) for y in exact), 1e-12)
