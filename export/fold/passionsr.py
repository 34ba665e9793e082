"""Fold an imported calibration of PassionSR: every layer and attention as PassionSR's own forward computes it.

What the fixed timestep and context make constant is computed with its quantizers, too. What specialization
multiplies into weights elsewhere is a step of its own here, so that the codes stay the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.models.families.sd21 import POST_QUANT_CONV, is_constant, part_of_network
from intsr.calib.models.modules import layers_of, put_modules
from intsr.calib.models.sites import sites_of_model
from intsr.calib.models.spec import diffusion_spec
from intsr.calib.passionsr.forward import PassionSRQuantizedLayer, quantize_scalar_range, quantized_bias
from intsr.calib.passionsr.types import ATTENTION_ROLES, PassionSRQuantizers
from intsr.errors import CalibrationError, ExportError
from intsr.export.fold.fold import FoldedLayer, FoldedNetwork
from intsr.export.fold.specialize import ConstantContextAttention, specialize
from intsr.export.fold.split_layers import SplitLayer, exact_grid, on_grid, split_weight

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration
    from intsr.calib.models.open import SRModel
    from intsr.calib.passionsr.types import PassionSRAttention, PassionSRLayer


class QuantizedAttention(nn.Module):
    """(N, tokens, channels) -> the same: PassionSR's attention with its four grids.

    owner: diffusers' attention, or one whose key and value are constants: those are quantized here and now.
    """

    def __init__(self, owner: Any, quantizer: PassionSRAttention, site: str) -> None:
        super().__init__()
        self.site, self.heads = site, int(owner.heads)
        self.to_q, self.to_out = owner.to_q, owner.to_out
        for name, value in (("scale_qk", quantizer.scale_qk), ("scale_vw", quantizer.scale_vw)):
            self.register_buffer(name, torch.tensor(value))
        bits = quantizer.activation_bits
        self.grids = {role: exact_grid(*quantizer.range_of(role), bits) for role in ATTENTION_ROLES}
        self.to_k = self.to_v = None
        if isinstance(owner, ConstantContextAttention):
            self.softmax_scale = owner.softmax_scale
            self._check_tokens(owner.key.shape[2])
            divided = {"key": owner.key / self.scale_qk, "value": owner.value / self.scale_vw[:, None]}
            for role, value in divided.items():
                self.register_buffer(role, quantize_scalar_range(value, quantizer.range_of(role), bits))
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


def fold_passionsr_network(name: str, model: SRModel, calibration: Calibration) -> FoldedNetwork:
    """Fold one network with every layer of the calibration's parts in integers, except constants.

    Of the model only that part needs to be there; it is used up. Raises CalibrationError where the calibration lacks
    a layer, ExportError where the model or its context does not fit.
    """
    part, quantizers = part_of_network(name), PassionSRQuantizers.from_calibration(calibration)
    sites = sites_of_model(model, (part,))
    quantized = {site: layer for site, layer in quantizers.layers.items() if site in sites}
    if part in calibration.parts and len(quantized) != len(sites):
        lacking = next(site for site in sites if site not in quantized)
        raise CalibrationError(calibration.method, f"nothing for {lacking}", "every layer", "import again")
    _quantize_constants(model, part, quantized)
    specialized = specialize(name, model)
    module = specialized.module
    layers: dict[str, FoldedLayer] = {}
    replaced: dict[str, nn.Module] = {}
    for site, layer in layers_of(module).items():
        if site in quantized:
            factor = specialized.row_factors.get(site, 1.0)
            weights = split_weight(sites[site].weight, quantized[site], layer.weight.shape[0])
            # Where specialization multiplied nothing it may have added the time to the bias.
            bias = layer.bias if factor == 1.0 else sites[site].bias
            bias = None if bias is None else bias[: layer.weight.shape[0]]
            # It multiplied post_quant_conv's input, and the others' outputs.
            divides = (
                {"divisor": diffusion_spec(model.spec).latent_scaling_factor}
                if site == POST_QUANT_CONV
                else {"factor": factor}
            )
            replaced[site] = SplitLayer(sites[site], quantized[site], weights, bias=bias, **divides)
            for i, piece in enumerate(weights):
                # Its input is on a grid already.
                name_of_piece = f"{site}.pieces.{i}"
                layers[name_of_piece] = FoldedLayer(name_of_piece, piece.codes, piece.scale, None)
    put_modules(module, replaced)
    present = dict(module.named_modules())
    attentions = {site: quantizer for site, quantizer in quantizers.attentions.items() if site in present}
    put_modules(module, {site: QuantizedAttention(present[site], q, site) for site, q in attentions.items()})
    return FoldedNetwork(name, module.eval(), layers)


def _quantize_constants(model: SRModel, part: str, quantized: Mapping[str, PassionSRLayer]) -> None:
    """Quantize layers that become constants, and put the others' biases on their grids."""
    network: nn.Module = getattr(model, part)
    for site, quantizer in quantized.items():
        name = site.removeprefix(f"{part}.")
        layer: Any = network.get_submodule(name)
        if is_constant(site):
            put_modules(network, {name: PassionSRQuantizedLayer(layer, quantizer)})
        elif layer.bias is not None:
            layer.bias = nn.Parameter(quantized_bias(layer.bias, quantizer), requires_grad=False)
