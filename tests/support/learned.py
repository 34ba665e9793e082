"""Random learned layers whose folding can be followed to the last digit.

What folding multiplies rows of weights by is a power of 2, so that rounding a scale to fp16 commutes with it; all
other scales are such that fp16 holds 1 / s. fp16 holds every D, too, and no weight lies on the midpoint between two
codes.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.input_grid import GridSpec
from intsr.calib.learn.quantized_layer import Branch, QuantizedLayer, quantized_layers
from intsr.calib.methods.efficientdm import LowRankChange
from intsr.calib.methods.qdiffusion import LearnedRounding
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import integer_sites
from intsr.kernels.rotation import rotate
from intsr.types import Bits

PARTS = ("unet", "vae")
# Sites whose s goes into rows of other weights.
BEHIND_ROWS = (".to_out.0", ".ff.net.2")


def exact_model(model: SRModel) -> SRModel:
    """A float64 copy whose specialization multiplies by powers of 2: latents by 1/4, the UNet's conv_out by -4."""
    spec = replace(model.spec, latent_scaling_factor=0.25, alpha_bar=1 / 17)
    unet, vae = (copy.deepcopy(network).double() for network in (model.unet, model.vae))
    return replace(model, spec=spec, unet=unet, vae=vae, context=model.context.double())


def network_input(name: str) -> torch.Tensor:
    """(1, C, 16, 16) float64; a picture's values where it is one."""
    generator = torch.Generator().manual_seed(9)
    channels = 3 if name == "encoder" else 4
    x = torch.randn(1, channels, 16, 16, generator=generator, dtype=torch.float64)
    return x.clamp(-1, 1) if name == "encoder" else x


def random_layers(
    model: SRModel, bits: Bits, let: str, *, symmetric: bool = False, weights: str = "ranges", exact: bool = True
) -> dict[str, QuantizedLayer]:
    """Every integer layer of a float64 model with random s and d, and ranges that clip a little of what is seen.

    weights: `ranges`, learned `rounding`, a `low_rank` part or a `branch` beside them, or `rotated`. exact: see
    above; otherwise s is anything, and weights stay where they are. Moves weights of `model`.
    """
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    layers = quantized_layers(model, bits, PARTS, let=let, symmetric=symmetric, rotated=weights == "rotated")
    grids: set[int] = set()
    for layer in layers.values():
        if id(layer.grid) not in grids:
            _set_let(layer, rng, exact)
            grids.add(id(layer.grid))
    _set_input_ranges(model, layers)
    sites = integer_sites(model, PARTS)
    for layer in layers.values():
        shape = layer.layer.weight.shape
        if weights == "branch":
            layer.branch = Branch(layer.layer.weight, 2)
            for part in layer.branch.parameters():
                # Numbers that float32 holds, as what is written of them.
                part.data.copy_(0.1 * torch.randn(part.shape))
        if weights in ("low_rank", "branch"):
            sides = (shape[0], 2), (2, shape[1:].numel())
            layer.weight_change = LowRankChange(*(0.03 * torch.randn(side) for side in sides))
        rows = layer.scaled_weight().flatten(1)
        shrink = torch.from_numpy(rng.uniform(0.85, 1, (2, shape[0])))
        low, high = rows.amin(1) * shrink[0], rows.amax(1) * shrink[1]
        if layer.weight_bits == 8:
            low = -torch.maximum(-low, high)
            high = -low
        layer.set_weight_range(*_on_scale(low, high, 254 if layer.weight_bits == 8 else 2**layer.weight_bits - 1))
        if weights == "rounding":
            layer.rounding = LearnedRounding(torch.randn(shape))
            layer.hard_rounding = True
        layer.double().requires_grad_(False)
        if exact:
            move_off_midpoints(layer)
        if weights == "rotated":
            turned = rotate(layer.layer.weight, layer.grid.spec.rotation, 1)
            sites[layer.site].weight.copy_(rotate(turned, layer.row_rotation, 0))
    return layers


def _set_let(layer: QuantizedLayer, rng: np.random.Generator, exact: bool) -> None:
    grid = layer.grid
    if not grid.has_let:
        return
    count = int(grid.index.max()) + 1
    inverse = rng.uniform(0.25, 4, count)
    if exact and layer.site.endswith(BEHIND_ROWS):
        inverse = 2.0 ** rng.integers(-2, 3, count)
    if exact:
        inverse = inverse.astype(np.float16).astype(np.float32)
    d = rng.normal(size=count) * 0.5 * grid.spec.may_shift
    scale, shift = (torch.from_numpy(values.astype(np.float32))[grid.index] for values in (1 / inverse, d))
    grid.set_let(scale, shift, torch.ones_like(shift))


def _on_scale(low: torch.Tensor, high: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends a little nearer or further apart, such that fp16 holds D: float32 and float64 then agree on it."""
    return low, low + steps * ((high - low) / steps).half().double()


@torch.no_grad()
def _set_input_ranges(model: SRModel, layers: dict[str, QuantizedLayer]) -> None:
    """From one input in full precision, a tenth of it clipped away."""
    for name, network in reference_networks(model).items():
        handles = []
        for site, layer in layers.items():
            if network_of_site(site) == name:

                def observe(_: nn.Module, inputs: tuple[torch.Tensor], layer: QuantizedLayer = layer) -> None:
                    x = rotate(inputs[0], layer.grid.spec.rotation, layer.grid.spec.axis)
                    layer.grid.set_range(*map(float, _clipped_range(layer.grid.spec, layer.input_seen(x))))

                handles.append(network.get_submodule(site).register_forward_pre_hook(observe))
        network(network_input(name))
        for handle in handles:
            handle.remove()


def _clipped_range(spec: GridSpec, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = (0.9 * end.double() for end in (seen.min(), seen.max()))
    if spec.symmetric:
        half = 2 ** (spec.bits - 1)
        scale = (torch.maximum(-low, high) / (half - 1)).half().double()
        return -half * scale, (half - 1) * scale
    if spec.holds_zero:
        low, high = low.clamp_max(0), high.clamp_min(0)
    return _on_scale(low, high, 2**spec.bits - 1)


def move_off_midpoints(layer: QuantizedLayer) -> None:
    scale, _, _ = layer.weight_grid()
    steps = layer.scaled_weight() / scale
    near = (steps - steps.floor() - 0.5).abs() < 0.01
    s = layer.grid.scale().reshape(1, -1, *[1] * (steps.ndim - 2))
    layer.layer.weight += near * 0.02 * scale / s


def calibration_of(layers: dict[str, QuantizedLayer], model: SRModel, bits: Bits) -> Calibration:
    """What training would have written."""
    sites = {site: layer.site_quantizer() for site, layer in layers.items()}
    return Calibration("test", bits, PARTS, "tiny", model.digest, 1, 16, 0.0, 0, sites)
