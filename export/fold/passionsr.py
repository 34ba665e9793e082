"""Fold an imported official calibration: every layer and attention as PassionSR's own forward computes it.

What the fixed timestep and context make constant is computed with the official quantizers, too. What specialization
multiplies into weights elsewhere is a step of its own here, so that the codes stay the official ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.learn.quantized_layer import put_layers
from intsr.calib.models.families.sites import is_constant, sites_of_model
from intsr.calib.passionsr.forward import OfficialQuantizedLayer, quantize_scalar_range, quantized_bias
from intsr.calib.passionsr.types import ATTENTION_ROLES
from intsr.errors import CalibrationError, ExportError
from intsr.export.fold.fold import (
    POST_QUANT_CONV,
    FoldedLayer,
    FoldedModel,
    FoldedNetwork,
    folded_facts,
    layer_modules,
)
from intsr.export.fold.specialize import ConstantContextAttention, specialize
from intsr.export.fold.split_layers import Piece, SplitLayer, exact_grid, folded_pieces, on_grid, split_weight
from intsr.types import NETWORKS

if TYPE_CHECKING:
    from intsr.calib.calibration import Calibration
    from intsr.calib.models.open import SRModel
    from intsr.calib.passionsr.types import OfficialAttention, OfficialLayer
    from intsr.types import ModelSpec


class QuantizedAttention(nn.Module):
    """(N, tokens, channels) -> the same: the official attention with its four grids.

    owner: diffusers' attention, or one whose key and value are constants: those are quantized here and now.
    """

    def __init__(self, owner: Any, official: OfficialAttention, site: str) -> None:
        super().__init__()
        self.site, self.heads = site, int(owner.heads)
        self.to_q, self.to_out = owner.to_q, owner.to_out
        for name, value in (("scale_qk", official.scale_qk), ("scale_vw", official.scale_vw)):
            self.register_buffer(name, torch.tensor(value))
        bits = official.activation_bits
        self.grids = {role: exact_grid(*official.range_of(role), bits) for role in ATTENTION_ROLES}
        self.to_k = self.to_v = None
        if isinstance(owner, ConstantContextAttention):
            self.softmax_scale = owner.softmax_scale
            self._check_tokens(owner.key.shape[2])
            divided = {"key": owner.key / self.scale_qk, "value": owner.value / self.scale_vw[:, None]}
            for role, value in divided.items():
                self.register_buffer(role, quantize_scalar_range(value, official.range_of(role), bits))
        else:
            self.softmax_scale = float(owner.scale)
            self.to_k, self.to_v = owner.to_k, owner.to_v

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        query = on_grid(self._heads(self.to_q, hidden_states) * self.scale_qk, self.grids["query"])
        if self.to_k is None:
            key, value = self.key, self.value
        else:
            self._check_tokens(hidden_states.shape[1])
            key = on_grid(self._heads(self.to_k, hidden_states) / self.scale_qk, self.grids["key"])
            value = self._heads(self.to_v, hidden_states) / self.scale_vw[:, None]
            value = on_grid(value, self.grids["value"])
        weights = (torch.matmul(query, key.transpose(2, 3)) * self.softmax_scale).softmax(dim=-1)
        weights = on_grid(weights * self.scale_vw, self.grids["weights"])
        mixed = torch.matmul(weights, value).transpose(1, 2).flatten(-2)
        output: torch.Tensor = self.to_out[0](mixed)
        return output

    def _heads(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return y

    def _check_tokens(self, tokens: int) -> None:
        if tokens != len(self.scale_vw):
            expected = f"{len(self.scale_vw)}, as when it was calibrated"
            raise ExportError(self.site, f"{tokens} tokens", expected, "use --tile with the calibrated size")


def fold_official(model: SRModel, calibration: Calibration) -> FoldedModel:
    """The three networks with every layer of the calibration's parts in integers, except constants.

    Raises CalibrationError where the calibration is of another model or lacks a layer, ExportError where the model or
    its context does not fit.
    """
    networks = tuple(fold_official_network(name, model, calibration) for name in NETWORKS)
    facts = folded_facts(model.spec, model.digest, calibration, model.older_digest)
    return replace(facts, networks=networks)


@torch.no_grad()
def fold_official_network(name: str, model: SRModel, calibration: Calibration) -> FoldedNetwork:
    """One network of `fold_official`; of the model only that part needs to be there."""
    calibration.check_model(model.digest, model.spec.name, model.older_digest)
    part = "unet" if name == "unet" else "vae"
    sites = sites_of_model(model, (part,))
    official_layers = {site: layer for site, layer in calibration.official_layers.items() if site in sites}
    if part in calibration.parts and len(official_layers) != len(sites):
        lacking = next(site for site in sites if site not in official_layers)
        raise CalibrationError(calibration.method, f"nothing for {lacking}", "every layer", "import again")
    specialized = specialize(_with_official_constants(model, part, official_layers))
    module: nn.Module = specialized.networks()[name]
    layers: dict[str, FoldedLayer] = {}
    replaced: dict[str, nn.Module] = {}
    for site, layer in layer_modules(module).items():
        if site in official_layers:
            factor = specialized.row_factors.get(site, 1.0)
            weights = split_weight(sites[site].weight, official_layers[site], layer.weight.shape[0])
            replaced[site] = _split_layer(
                site, layer.bias, sites[site], official_layers[site], weights, factor, model.spec
            )
            layers |= folded_pieces(site, weights)
    put_layers(module, replaced)
    put_layers(module, _attentions_of(module, calibration))
    return FoldedNetwork(name, module.eval(), MappingProxyType(layers))


def _split_layer(
    site: str,
    specialized_bias: torch.Tensor | None,
    layer: nn.Conv2d | nn.Linear,
    official: OfficialLayer,
    weights: Sequence[Piece],
    factor: float,
    spec: ModelSpec,
) -> SplitLayer:
    """factor: what specialization multiplied weights by: the output's, or post_quant_conv's input's."""
    # Where it multiplied nothing it may have added the time to the bias.
    bias = specialized_bias if factor == 1.0 else quantized_bias(layer.bias, official)
    bias = None if bias is None else bias[: len(weights[0].codes)]
    if site == POST_QUANT_CONV:
        return SplitLayer(layer, official, weights, bias, divisor=spec.latent_scaling_factor)
    return SplitLayer(layer, official, weights, bias, factor=factor)


def _attentions_of(module: nn.Module, calibration: Calibration) -> dict[str, nn.Module]:
    present = dict(module.named_modules())
    return {
        site: QuantizedAttention(present[site], official, site)
        for site, official in calibration.official_attentions.items()
        if site in present
    }


def _with_official_constants(model: SRModel, part: str, official_layers: Mapping[str, OfficialLayer]) -> SRModel:
    """A copy of one part, weights shared, in which constants are quantized and biases are on their grids."""
    network: nn.Module = getattr(model, part)
    network = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    for site, official in official_layers.items():
        name = site.removeprefix(f"{part}.")
        layer: Any = network.get_submodule(name)
        if is_constant(site):
            put_layers(network, {name: OfficialQuantizedLayer(layer, official)})
        elif layer.bias is not None:
            bias = quantized_bias(layer.bias, official)
            assert bias is not None
            layer.bias = nn.Parameter(bias, requires_grad=False)
    return replace(model, **{**dict.fromkeys(("unet", "vae")), part: network})
