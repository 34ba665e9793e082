"""Fold a calibration into a specialized model: integer weights, activation grids, float biases.

`fake_quantized` is the torch reference of the result: float arithmetic on quantized values, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.models.families.sd21 import FLOAT_SITES, part_of_network
from intsr.calib.models.modules import copy_sharing_weights, layers_of, put_modules
from intsr.calib.observe.fake_quant import FakeQuantLayer, integer_part
from intsr.errors import CalibrationError
from intsr.export.fold.let import Let, fuse_let
from intsr.export.fold.rotations import fuse_rotations
from intsr.kernels.layer_algebra import Layer, scaled_weight
from intsr.kernels.quantizer import QuantParams, dequantize_weight, rescale, round_scale
from intsr.kernels.rotation import rotate

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration, SiteQuantizer
    from intsr.export.fold.specialize import SpecializedNetwork


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """One Conv2d, Conv3d or Linear in integers; its float bias stays in the module.

    weight_codes: int8, (Cout, Cin, kh, kw), (Cout, Cin, kt, kh, kw) or (out, in). weight_scale: float32 (Cout,),
    exact in fp16.
    activation: the grid of the layer's input, or of x~ = (x - let_shift) / let_scale where those are given, float32
    (Cin,): then weights and bias are already those that belong to x~ (see `fold.let`). None: the input is quantized
    by an operation of its own (see `split_layers`).
    rotation: size of the blocks that the input is rotated by first (`kernels.rotation`), 0 for none.
    branch: up, float64 (Cout, r), and down, (r, Cin, kh, kw) or (r, in): up (down x) is added to the output, x being
    the layer's input as it is. Whoever writes them down rounds them.
    """

    site: str
    weight_codes: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    activation: QuantParams | None
    let_scale: NDArray[np.float32] | None = None
    let_shift: NDArray[np.float32] | None = None
    branch: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    rotation: int = 0

    @property
    def takes_padding(self) -> bool:
        """Whether a padded zero has a code: one of the grid, or it is of x, in front of a shift."""
        grid = self.activation
        return grid is None or self.let_shift is not None or 0 <= grid.zero_point <= grid.qmax


@dataclass(frozen=True, slots=True)
class FoldedNetwork:
    """A specialized network and the layers of it that run in integers, by site; the others stay float."""

    name: str
    module: nn.Module
    layers: Mapping[str, FoldedLayer]


def fold_network(network: SpecializedNetwork, calibration: Calibration | None) -> FoldedNetwork:
    """Quantize the weights of every calibrated layer. Without a calibration everything stays float.

    `network` is used up: see `fold_layers`. Raises CalibrationError where the calibration lacks a layer of its own
    parts.
    """
    name, module = network.name, network.module
    if calibration is None or part_of_network(name) not in calibration.parts:
        return FoldedNetwork(name, module, {})
    integer = {site: layer for site, layer in layers_of(module).items() if site not in FLOAT_SITES}
    layers = fold_layers(module, integer, calibration, network.plain_weights, network.row_factors)
    return FoldedNetwork(name, module, layers)


def fold_layers(
    module: nn.Module,
    integer: Mapping[str, Layer],
    calibration: Calibration,
    plain_weights: Mapping[str, torch.Tensor],
    row_factors: Mapping[str, Any],
) -> dict[str, FoldedLayer]:
    """Integer weights, grids and float biases of the layers `integer` of a specialized module, by site.

    Codes are those of W~ = s W, as calibration saw and simulated it. What a row is multiplied by besides goes into
    its scale, all of it at once, and fp16 then holds the product by one rounding. plain_weights, row_factors: W where
    specialization has multiplied it, and by what, one number or one a row.

    The module is changed, and its float weights go as soon as codes are made of them. Raises CalibrationError where
    the calibration lacks a layer.
    """
    lets = _lets_of_sites(integer, calibration)
    weights = {}
    for site, layer in integer.items():
        plain = plain_weights.get(site, layer.weight)[: len(layer.weight)].detach()
        weights[site] = _quantized_weight(site, plain, calibration.sites[site])
    rotations = fuse_rotations(module, integer, calibration.sites)
    explicit, of_let = fuse_let(module, lets, rotations)
    layers = {}
    for site, layer in integer.items():
        quantizer, factors = calibration.sites[site], row_factors.get(site, 1.0)
        if isinstance(factors, torch.Tensor):
            factors = factors.double().numpy()
        let_scale: NDArray[np.float32] | None = None
        let_shift: NDArray[np.float32] | None = None
        if site in explicit:
            # 1 / s is what an fp16 graph holds, so it is exact there; what went into other weights is s itself.
            let_scale = np.float32(1) / round_scale((1 / lets[site].s).numpy())
            let_shift = None if quantizer.explicit_shift() is None else lets[site].d.numpy()
        if site in of_let:
            factors = factors * of_let[site].numpy()
        codes, scale = _multiplied(*weights[site], factors)
        place: Any = {"rotated": rotations[site] != quantizer.rotation, "explicit": site in explicit}
        branch = _fold_branch(layer, quantizer, factors, let=lets.get(site), **place)
        layers[site] = FoldedLayer(
            site,
            codes,
            scale,
            quantizer.activation_params(),
            let_scale,
            let_shift,
            branch=None if branch is None else (stored(branch[0]), stored(branch[1])),
            rotation=rotations[site],
        )
        # Shapes are all that is still asked of it: one number stands for all, one that no graph may hold.
        layer.weight = nn.Parameter(torch.full((1,), torch.nan).expand(layer.weight.shape), requires_grad=False)
    return layers


def _lets_of_sites(layers: Mapping[str, Layer], calibration: Calibration) -> dict[str, Let]:
    lets = {}
    for site, layer in layers.items():
        quantizer = calibration.sites.get(site)
        if quantizer is None:
            raise CalibrationError(calibration.method, f"no range for {site}", "every layer", "calibrate again")
        s, d = quantizer.let_scale, quantizer.let_shift
        if s is None or d is None:
            continue
        if len(s) != layer.weight.shape[1]:
            got = f"LET of {len(s)} channels for {site}"
            raise CalibrationError(calibration.method, got, str(layer.weight.shape[1]), "calibrate again")
        lets[site] = Let(torch.tensor(s), torch.tensor(d), quantizer.rotation, quantizer.row_rotation)
    return lets


def _quantized_weight(
    site: str, plain: torch.Tensor, quantizer: SiteQuantizer
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integer s W and their scales, of W as the model has it."""
    plain = integer_part(plain, quantizer)
    if quantizer.let_scale is not None:
        plain = scaled_weight(plain, torch.tensor(quantizer.let_scale))
    learned = quantizer.weight_low if quantizer.weight_codes is None else quantizer.weight_codes
    if learned is not None and tuple(learned.shape) != tuple(plain.shape[: learned.ndim]):
        got = f"learned weights of shape {learned.shape}"
        raise CalibrationError(site, got, str(tuple(plain.shape)), "calibrate again")
    return quantizer.quantize_weight(plain.numpy())


def _multiplied(
    codes: NDArray[np.int8], scale: NDArray[np.float32], factors: NDArray[np.float64] | float
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integer weights and their scales (Cout,), times a factor an output channel: the same codes, or their negatives.

    Only a product below the smallest scale that fp16 holds needs others, on the coarser grid that it gets.
    """
    held = rescale(scale, factors)
    moved = (scale * np.float64(1) * factors / held).astype(np.float32)
    # Within fp16's range it is 1 to eleven binary places, or -1: no code is so large that this moves it.
    codes = np.rint(codes * moved.reshape(-1, *[1] * (codes.ndim - 1))).clip(-127, 127).astype(np.int8)
    return codes, held


def _fold_branch(
    layer: Layer,
    quantizer: SiteQuantizer,
    factors: NDArray[np.float64] | float,
    *,
    let: Let | None,
    rotated: bool,
    explicit: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """up and down of a branch on what the layer is given: x, or x~ where its LET went into what makes it.

        L x = (L s) x~ + L d

    L d is in the bias b + W d already where x~ is given; where x is, b + (W - L) d is wanted. rotated: what is given
    is H x already.
    """
    branch = quantizer.branch()
    if branch is None:
        return None
    up, down = (torch.from_numpy(part.astype(np.float64)) for part in branch)
    # The layer keeps its first rows.
    up = rotate(up[: len(layer.weight)], quantizer.row_rotation, 0).numpy() * np.reshape(factors, (-1, 1))
    down = rotate(down, quantizer.rotation if rotated else 0, 1).numpy()
    if let is None:
        return up, down
    s, d = (v.double().numpy().reshape(1, -1, *[1] * (down.ndim - 2)) for v in (let.s, let.offset()))
    if not explicit:
        return up, down * s
    if d.any():
        assert layer.bias is not None
        owed = torch.from_numpy(up @ (down * d).reshape(len(down), -1).sum(1))
        layer.bias = nn.Parameter((layer.bias - owed).to(layer.bias.dtype), requires_grad=False)
    return up, down


def stored(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """What engines hold of a branch's up or down: numbers of float16."""
    return part.astype(np.float16).astype(np.float64)


def folded_layer(layer: Layer, folded: FoldedLayer, weight_only: bool = False) -> FakeQuantLayer:
    """One layer of a folded network, with its float bias. weight_only: its input stays as it is."""
    weight = torch.from_numpy(dequantize_weight(folded.weight_codes, folded.weight_scale))
    activation, branch = None if weight_only else folded.activation, None
    if folded.branch is not None:
        up, down = (torch.from_numpy(part).to(layer.weight.dtype) for part in folded.branch)
        branch = up, down
    let: Any = {"let_scale": folded.let_scale, "let_shift": folded.let_shift}
    return FakeQuantLayer(layer, weight, layer.bias, activation, branch=branch, rotation=folded.rotation, **let)


def fake_quantized(network: FoldedNetwork, weight_only: bool = False) -> nn.Module:
    """A copy of the network with every folded layer replaced; float parameters are shared with the original."""
    module = copy_sharing_weights(network.module)
    layers: dict[str, Any] = {site: module.get_submodule(site) for site in network.layers}
    put_modules(module, {site: folded_layer(layers[site], f, weight_only) for site, f in network.layers.items()})
    return module.eval()
