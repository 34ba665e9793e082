"""Fold a calibration into a specialized model: integer weights, activation grids, float biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.errors import CalibrationError
from intsr.export.fold_let import Let, fuse_let
from intsr.kernels.quantizer import QuantParams, quantize_weight, round_scale
from intsr.types import NETWORKS, Bits, ModelSpec

if TYPE_CHECKING:
    from intsr.calib.calibration import Calibration
    from intsr.export.specialize import SpecializedModel

# Specialization moves the latent scaling factor across this layer's input: x there is f times what it was.
POST_QUANT_CONV = "vae.post_quant_conv"
# Layers with fewer input or output channels stay float in every engine. They are under 2 % of the operations, an
# integer kernel pads their channels and gains nothing, and the picture's own 8-bit levels lie half-way between the
# codes of any grid on [-1, 1] that holds 0, so that quantizing the first layer's input would round every pixel.
MIN_INTEGER_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """One Conv2d or Linear in integers; its float bias stays in the module.

    weight_codes: int8, (Cout, Cin, kh, kw) or (out, in). weight_scale: float32 (Cout,), exact in fp16.
    activation: the grid of the layer's input, or of x~ = (x - let_shift) / let_scale where those are given, float32
    (Cin,): then weights and bias are already those that belong to x~ (see `fold_let`).
    """

    site: str
    weight_codes: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    activation: QuantParams
    let_scale: NDArray[np.float32] | None = None
    let_shift: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class FoldedNetwork:
    """A specialized network and the layers of it that run in integers, by site; the others stay float."""

    name: str
    module: nn.Module
    layers: Mapping[str, FoldedLayer]


@dataclass(frozen=True, slots=True)
class FoldedModel:
    """encoder, unet, decoder, in this order, with what the bundle's manifest says of them."""

    spec: ModelSpec
    networks: tuple[FoldedNetwork, ...]
    method: str
    bits: Bits
    parts: tuple[str, ...]
    calibration_digest: str

    def network(self, name: str) -> FoldedNetwork:
        return self.networks[NETWORKS.index(name)]


def layer_modules(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every Conv2d and Linear by its site name, in module order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def fold(model: SpecializedModel, calibration: Calibration | None) -> FoldedModel:
    """Quantize the weights of every calibrated layer. Without a calibration everything stays float.

    Raises CalibrationError where the calibration is of another model or lacks a layer of its own parts.
    """
    if calibration is None:
        networks = [FoldedNetwork(name, module, MappingProxyType({})) for name, module in model.networks().items()]
        return FoldedModel(model.spec, tuple(networks), "none", Bits(None, None), (), "")
    calibration.check_model(model.digest, model.spec.name)
    networks = []
    for name, module in model.networks().items():
        quantized = ("unet" if name == "unet" else "vae") in calibration.parts
        integer = {
            site: layer
            for site, layer in layer_modules(module).items()
            if quantized and min(layer.weight.shape[:2]) >= MIN_INTEGER_CHANNELS
        }
        lets = _lets_of_sites(integer, calibration, model.spec)
        module, explicit = fuse_let(module, lets)
        modules = layer_modules(module)
        layers = {}
        for site in integer:
            let = lets[site] if site in explicit else None
            layers[site] = _fold_layer(site, modules[site], calibration, model.spec, let)
        networks.append(FoldedNetwork(name, module, MappingProxyType(layers)))
    return FoldedModel(
        model.spec, tuple(networks), calibration.method, calibration.bits, calibration.parts, calibration.digest()
    )


def _lets_of_sites(
    layers: Mapping[str, nn.Conv2d | nn.Linear], calibration: Calibration, spec: ModelSpec
) -> dict[str, Let]:
    lets = {}
    for site, layer in layers.items():
        quantizer = calibration.sites.get(site)
        if quantizer is None:
            raise CalibrationError(calibration.method, f"no range for {site}", "every layer", "calibrate again")
        if quantizer.let_scale:
            if len(quantizer.let_scale) != layer.weight.shape[1]:
                got = f"LET of {len(quantizer.let_scale)} channels for {site}"
                raise CalibrationError(calibration.method, got, str(layer.weight.shape[1]), "calibrate again")
            factor = spec.latent_scaling_factor if site == POST_QUANT_CONV else 1.0
            s, d = (torch.tensor(values) * factor for values in (quantizer.let_scale, quantizer.let_shift))
            # 1 / s is what an fp16 graph holds: exact there, so that weights and activations use the same s.
            lets[site] = Let(1 / torch.from_numpy(round_scale((1 / s).numpy())), d)
    return lets


def _fold_layer(
    site: str, layer: nn.Conv2d | nn.Linear, calibration: Calibration, spec: ModelSpec, let: Let | None
) -> FoldedLayer:
    quantizer = calibration.sites[site]
    activation = quantizer.activation_params()
    if site == POST_QUANT_CONV and not quantizer.let_scale:
        # Only a VAE of 16 latent channels or more has this layer in integers.
        activation = activation.rescaled(spec.latent_scaling_factor)
    codes, scale = quantize_weight(layer.weight.detach().numpy(), quantizer.weight_bits)
    if let is None:
        return FoldedLayer(site, codes, scale, activation)
    shift = let.d.numpy() if let.d.any() else None
    return FoldedLayer(site, codes, scale, activation, let.s.numpy(), shift)
