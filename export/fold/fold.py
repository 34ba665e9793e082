"""Fold a calibration into a specialized model: integer weights, activation grids, float biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.models.families.sd21 import HALVED_SITE, POST_QUANT_CONV, part_of_network
from intsr.calib.models.modules import layers_of
from intsr.calib.models.sites import runs_in_integers
from intsr.calib.observe.fake_quant import integer_part
from intsr.errors import CalibrationError
from intsr.export.fold.let import Let, fuse_let
from intsr.export.fold.rotations import fuse_rotations
from intsr.kernels.layer_algebra import scaled_weight
from intsr.kernels.quantizer import QuantParams, rescale
from intsr.types import ModelSpec

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration, SiteQuantizer
    from intsr.export.fold.specialize import SpecializedNetwork


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """One Conv2d or Linear in integers; its float bias stays in the module.

    weight_codes: int8, (Cout, Cin, kh, kw) or (out, in). weight_scale: float32 (Cout,), exact in fp16.
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


@dataclass(frozen=True, slots=True)
class FoldedNetwork:
    """A specialized network and the layers of it that run in integers, by site; the others stay float."""

    name: str
    module: nn.Module
    layers: Mapping[str, FoldedLayer]


def fold_network(network: SpecializedNetwork, calibration: Calibration | None) -> FoldedNetwork:
    """Quantize the weights of every calibrated layer. Without a calibration everything stays float.

    Codes are those of W~ = s W, as calibration saw and simulated it. What a row is multiplied by besides goes into
    its scale, all of it at once, and fp16 then holds the product by one rounding.

    `network` is used up: its modules are changed, and their float weights go as soon as codes are made of them.
    Raises CalibrationError where the calibration lacks a layer of its own parts.
    """
    name, module = network.name, network.module
    if calibration is None or part_of_network(name) not in calibration.parts:
        return FoldedNetwork(name, module, MappingProxyType({}))
    integer = {site: layer for site, layer in layers_of(module).items() if runs_in_integers(layer)}
    lets = _lets_of_sites(integer, calibration, network.spec)
    weights = {}
    for site, layer in integer.items():
        plain = network.plain_weights.get(site, layer.weight).detach()
        weights[site] = _quantized_weight(site, plain, calibration.sites[site])
    rotations = fuse_rotations(module, integer, calibration.sites)
    fused = fuse_let(module, lets)
    layers = {}
    for site in integer:
        let = lets[site] if site in fused.explicit else None
        # post_quant_conv's s carries the latent scaling factor, which cancels what specialization divided by.
        cancelled = site == POST_QUANT_CONV and site in lets
        specialized = 1.0 if cancelled else network.row_factors.get(site, 1.0)
        of_let = fused.row_factors.get(site)
        factors = specialized if of_let is None else specialized * of_let.numpy()
        folded = _fold_layer(site, _multiplied(*weights[site], factors), calibration, network.spec, let)
        # The branch has no s, and is divided after all.
        of_branch = factors / network.spec.latent_scaling_factor if cancelled else factors
        branch = _fold_branch(integer[site], calibration.sites[site], of_branch, lets.get(site), let is not None)
        layers[site] = replace(folded, branch=branch, rotation=rotations[site])
    for layer in integer.values():
        # Shapes are all that is still asked of it: one number stands for all, one that no graph may hold.
        layer.weight = nn.Parameter(torch.full((1,), torch.nan).expand(layer.weight.shape), requires_grad=False)
    return FoldedNetwork(name, module, MappingProxyType(layers))


def _lets_of_sites(
    layers: Mapping[str, nn.Conv2d | nn.Linear], calibration: Calibration, spec: ModelSpec
) -> dict[str, Let]:
    lets = {}
    for site, layer in layers.items():
        quantizer = calibration.sites.get(site)
        if quantizer is None:
            raise CalibrationError(calibration.method, f"no range for {site}", "every layer", "calibrate again")
        if quantizer.let_scale is not None and quantizer.let_shift is not None:
            if len(quantizer.let_scale) != layer.weight.shape[1]:
                got = f"LET of {len(quantizer.let_scale)} channels for {site}"
                raise CalibrationError(calibration.method, got, str(layer.weight.shape[1]), "calibrate again")
            factor = spec.latent_scaling_factor if site == POST_QUANT_CONV else 1.0
            s, d = (
                torch.from_numpy(values * np.float32(factor)) for values in (quantizer.let_scale, quantizer.let_shift)
            )
            lets[site] = Let(s, d)
    return lets


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


def _fold_layer(
    site: str,
    weights: tuple[NDArray[np.int8], NDArray[np.float32]],
    calibration: Calibration,
    spec: ModelSpec,
    let: Let | None,
) -> FoldedLayer:
    quantizer = calibration.sites[site]
    activation = quantizer.activation_params()
    if site == POST_QUANT_CONV and quantizer.let_scale is None:
        # Only a VAE of 16 latent channels or more has this layer in integers.
        activation = activation.rescaled(spec.latent_scaling_factor)
    if let is None:
        return FoldedLayer(site, *weights, activation)
    shift = None if quantizer.explicit_shift() is None else let.d.numpy()
    return FoldedLayer(site, *weights, activation, let.held_s.numpy(), shift)


def _fold_branch(
    layer: nn.Conv2d | nn.Linear,
    quantizer: SiteQuantizer,
    factors: NDArray[np.float64] | float,
    let: Let | None,
    explicit: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """up and down of a branch on what the layer is given: x, or x~ where its LET went into what makes it.

        L x = (L s) x~ + L d

    L d is in the bias b + W d already where x~ is given; where x is, b + (W - L) d is wanted.
    """
    branch = quantizer.branch()
    if branch is None:
        return None
    # The layer keeps its first rows.
    up = branch[0][: len(layer.weight)].astype(np.float64) * np.reshape(factors, (-1, 1))
    down = branch[1].astype(np.float64)
    if let is None:
        return up, down
    s, d = (v.double().numpy().reshape(1, -1, *[1] * (down.ndim - 2)) for v in (let.s, let.d))
    if not explicit:
        return up, down * s
    if d.any():
        assert layer.bias is not None
        owed = torch.from_numpy(up @ (down * d).reshape(len(down), -1).sum(1))
        layer.bias = nn.Parameter((layer.bias - owed).to(layer.bias.dtype), requires_grad=False)
    return up, down


def _quantized_weight(
    site: str, plain: torch.Tensor, quantizer: SiteQuantizer
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integer s W and their scales, of W as the model has it.

    quant_conv keeps the first half of its output channels: so do the tensors that belong to them.
    """
    plain = integer_part(plain, quantizer)
    if quantizer.let_scale is not None:
        plain = scaled_weight(plain, torch.tensor(quantizer.let_scale))
    learned = next((a for a in (quantizer.weight_codes, quantizer.weight_low) if a is not None), None)
    full = len(plain) if site != HALVED_SITE else 2 * len(plain)
    if learned is not None and (len(learned) != full or (learned.ndim > 1 and learned.shape[1:] != plain.shape[1:])):
        got = f"learned weights of shape {learned.shape}"
        raise CalibrationError(site, got, str(tuple(plain.shape)), "calibrate again")
    return quantizer.quantize_weight(plain.numpy())
