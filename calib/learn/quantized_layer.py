"""Layers as engines will compute them, differentiable: what training works on.

    x~ = (x - d) / s,   y = layer(Q(x~); Q(s (W - L))) + L x + b + (W - L) d

L is a branch of small rank that some methods add, 0 for the others. InputGrid holds s, d and the range of one input,
which several layers may share; QuantizedLayer holds what belongs to one layer's weights. Every learned number of a
grid is a base, found by initialization, and a relative change, trained: a range's ends change in units of its width,
s by a factor, d in units of the channel's amax. One learning rate then suits all layers. docs/theory.md, "LBQ", "LET"
and "Branches".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.learn.input_grid import InputGrid, grid_spec
from intsr.calib.models.families.sd21 import (
    bits_of_site,
    concat_boundaries,
    input_groups,
    value_maker,
)
from intsr.calib.models.modules import copy_sharing_weights, put_modules
from intsr.calib.models.sites import head_channels, integer_sites
from intsr.kernels.draq import STATIC
from intsr.kernels.layer_algebra import (
    branch_weight,
    fake_quantize_weight,
    over_inputs,
    over_outputs,
    padding_before_shift,
    row_range,
    run_branch,
    run_layer,
    scaled_weight,
    shifted_bias,
    weight_grid,
    weight_range,
)
from intsr.kernels.quantizer import SYMMETRIC_BITS
from intsr.kernels.rotation import rotate
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

# Of the layer's smaller side, what a branch may have of it at most; layers of 8 bits have none.
RANK_SHARE = 8


class Branch(nn.Module):
    """L = up down, on the layer's own input, 0 at first. up: (Cout, r). down: (r, Cin, kh, kw) or (r, in)."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.down = nn.Parameter(weight.new_zeros(rank, *weight.shape[1:]))

    @torch.no_grad()
    def decompose(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """Set L s to the best approximation of the layer's s W, in the sum of squares. scale: s, (Cin,)."""
        matrix = scaled_weight(weight, scale).flatten(1)
        u, singular, v = torch.linalg.svd(matrix, full_matrices=False)
        root = singular[: len(self.down)].sqrt()
        self.up.copy_(u[:, : len(root)] * root)
        down = (root[:, None] * v[: len(root)]).reshape(self.down.shape)
        self.down.copy_(down / over_inputs(scale, down))


def branch_rank(weight: torch.Tensor, rank: int) -> int:
    """Return the rank of a layer's branch where `rank` is asked for: at most 1 / RANK_SHARE of its smaller side."""
    return min(rank, min(weight.shape[:2]) // RANK_SHARE)


class QuantizedLayer(nn.Module):
    """A Conv2d or Linear on an InputGrid, with its own grid for every output channel's weights.

    The layer's own weight and bias stay as they are.
    """

    def __init__(
        self,
        site: str,
        layer: nn.Conv2d | nn.Linear,
        grid: InputGrid,
        weight_bits: int,
        *,
        rank: int = 0,
        row_rotation: int = 0,
    ) -> None:
        """rank: of the branch, 0 for none. row_rotation: see `SiteQuantizer`."""
        super().__init__()
        self.site, self.grid, self.weight_bits, self.row_rotation = site, grid, weight_bits, row_rotation
        # As it is where both are rotated: everything below is about H x and H y.
        self.layer = rotated_layer(layer, grid.spec.rotation, row_rotation)
        rows = layer.weight.shape[0]
        for name, start in (("base_weight_low", -1.0), ("base_weight_high", 1.0)):
            self.register_buffer(name, torch.full((rows,), start))
        self.weight_low, self.weight_high = nn.Parameter(torch.zeros(rows)), nn.Parameter(torch.zeros(rows))
        # What a method adds: L; W~ -> the weights that are quantized; (W~ / D, hard) -> codes, not clamped yet.
        self.branch = Branch(layer.weight, rank) if rank else None
        self.weight_change: nn.Module | None = None
        self.rounding: nn.Module | None = None
        self.hard_rounding = False
        # Of `learn.volts`, "" where a method has none.
        self.tier = ""
        self.dynamic_weights = False
        self.padding = padding_before_shift(layer) if grid.spec.may_shift else ()

    def integer_part(self) -> torch.Tensor:
        """W - L."""
        if self.branch is None:
            return self.layer.weight
        with torch.autocast(self.layer.weight.device.type, enabled=False):
            return self.layer.weight - branch_weight(self.branch.up, self.branch.down)

    def scaled_weight(self) -> torch.Tensor:
        """W~ = s (W - L), and what a method changes of it."""
        weight = self.integer_part()
        if self.grid.has_let:
            weight = scaled_weight(weight, self.grid.scale())
        if self.weight_change is not None:
            weight = self.weight_change(weight)
        return weight

    def weight_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned range of every output channel's weights, (Cout,) each."""
        width = self.base_weight_high - self.base_weight_low
        low, high = self.base_weight_low + self.weight_low * width, self.base_weight_high + self.weight_high * width
        return weight_range(low, high, self.weight_bits)

    def quantized_weight(self) -> torch.Tensor:
        """Q(W~), the layer's shape."""
        weight = self.scaled_weight()
        if self.rounding is not None:
            return self._rounded(weight, self.hard_rounding)
        ends = row_range(weight) if self.dynamic_weights else self.weight_range()
        low, high = (over_outputs(end, weight) for end in ends)
        return fake_quantize_weight(weight, low, high, self.weight_bits)

    def weight_grid(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(D, first code, number of steps) of the learned range; D and the code have the weight's rank."""
        low, high = (over_outputs(end, self.layer.weight) for end in self.weight_range())
        return weight_grid(low, high, self.weight_bits)

    def _rounded(self, weight: torch.Tensor, hard: bool) -> torch.Tensor:
        """Q(W~) where rounding is learned."""
        assert self.rounding is not None
        scale, first, steps = self.weight_grid()
        codes = self.rounding(weight / scale, hard)
        return torch.minimum(torch.maximum(codes, first), first + steps) * scale

    def requires_grad_learned(self, requires: bool) -> None:
        """Hold everything that is learned of this layer, or let all of it change."""
        for name, parameter in self.named_parameters():
            if not name.startswith("layer."):
                parameter.requires_grad_(requires)

    def input_seen(self, x: torch.Tensor) -> torch.Tensor:
        """x~, padded where that comes first: what the grid quantizes."""
        if any(self.padding):
            x = functional.pad(x, self.padding)
        return self.grid.transform(x)

    def bias(self) -> torch.Tensor | None:
        """b + (W - L) d."""
        if not (self.grid.has_let and self.grid.spec.may_shift):
            return self.layer.bias
        return shifted_bias(self.layer.bias, self.integer_part(), self.grid.offset())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = rotate(x, self.grid.spec.rotation, self.grid.spec.axis)
        y = self.apply_layer(self.grid.quantize(self.input_seen(x)), self.quantized_weight())
        if self.branch is not None:
            y = y + run_branch(self.layer, x, self.branch.up, self.branch.down)
        return rotate(y, self.row_rotation, -1)

    def apply_layer(self, x: torch.Tensor, weight: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        """The bare layer on x~, with a given W~."""
        bias = self.bias() if with_bias else None
        return run_layer(self.layer, x, weight, bias, padded=self.grid.spec.may_shift)

    @torch.no_grad()
    def set_weight_range(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """A new base, (Cout,) each; what was learned of the range is forgotten."""
        self.base_weight_low.copy_(low)
        self.base_weight_high.copy_(high)
        self.weight_low.zero_()
        self.weight_high.zero_()

    @torch.no_grad()
    def site_quantizer(self) -> SiteQuantizer:
        """Return the numbers that were learned, and change nothing."""
        assert self.grid.spec.form == STATIC, "no engine finds factors as it runs"
        low, high = (float(end) for end in self.grid.range())
        arrays: dict[str, Any] = {}
        if self.grid.has_let:
            arrays |= {"let_scale": _array(self.grid.scale()), "let_shift": _array(self.grid.offset())}
        if self.branch is not None:
            # On x itself, and y: H is its own inverse.
            down = rotate(self.branch.down, self.grid.spec.rotation, 1)
            arrays |= {"branch_up": _array(rotate(self.branch.up, self.row_rotation, 0)), "branch_down": _array(down)}
        if self.rounding is None and self.weight_change is None:
            ends = self.weight_range()
            arrays |= {"weight_low": _array(ends[0]), "weight_high": _array(ends[1])}
        else:
            scale, _, _ = self.weight_grid()
            rounded = (
                self.quantized_weight() if self.rounding is None else self._rounded(self.scaled_weight(), hard=True)
            )
            codes = (rounded / scale).round()
            arrays |= {"weight_codes": _array(codes, np.int8), "weight_scale": _array(scale.flatten())}
        rotations: Any = {"rotation": self.grid.spec.rotation, "row_rotation": self.row_rotation}
        return SiteQuantizer(low, high, self.grid.spec.bits, self.weight_bits, **arrays, **rotations)


def _array(tensor: torch.Tensor, dtype: type[np.generic] = np.float32) -> Any:
    # What is rotated has its axes in another order, which files do not keep.
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(dtype))


@torch.no_grad()
def rotated_layer(layer: nn.Conv2d | nn.Linear, size: int, row_size: int) -> nn.Conv2d | nn.Linear:
    """The layer with weights (H') W H and bias H' b; itself where nothing is rotated."""
    if not size and not row_size:
        return layer
    made = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    made.weight = nn.Parameter(rotate(rotate(layer.weight, size, 1), row_size, 0), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(rotate(layer.bias, row_size, 0), requires_grad=False)
    return made


def quantized_layers(
    model: SRModel, bits: Bits, parts: tuple[str, ...], **settings: Any
) -> dict[str, QuantizedLayer]:
    """A QuantizedLayer for every integer site of `parts`, in module order. settings: of `layers_on_grids`."""
    sites, seams = integer_sites(model, parts), concat_boundaries(model.unet)
    return layers_on_grids(
        sites, lambda s: bits_of_site(s, bits), lambda s: head_channels(model, s), seams, **settings
    )


def layers_on_grids(
    sites: Mapping[str, nn.Conv2d | nn.Linear],
    bits_of: Callable[[str], tuple[int, int]],
    head_channels_of: Callable[[str], int],
    seams: Mapping[str, int] = MappingProxyType({}),
    *,
    let: str = "none",
    symmetric: bool = False,
    rank: int = 0,
    rotated: bool = False,
    form: str = STATIC,
    unrotated: Collection[str] = (),
) -> dict[str, QuantizedLayer]:
    """A QuantizedLayer for every site, in their order; input groups share grids, not set yet.

    bits_of: site -> bits of its weights and input. head_channels_of: site of attention -> channels of a head. seams:
    see `concat_boundaries`. rank: of branches. rotated: inputs of fewer than 8 bits are, but
    for groups that begin with one of `unrotated`. form: of `kernels.draq`.
    """
    layers = {}
    for group in input_groups(sites):
        first = group[0]
        grid_bits, seam = bits_of(first)[1], seams.get(first, 0)
        turned = rotated and first not in unrotated
        kinds: Any = {"let": let, "symmetric": symmetric, "rotated": turned, "form": form}
        grid = InputGrid(grid_spec(first, sites[first], grid_bits, seam=seam, **kinds))
        for site in group:
            weight, weight_bits = sites[site].weight, bits_of(site)[0]
            own = branch_rank(weight, rank) if weight_bits < SYMMETRIC_BITS else 0
            layers[site] = QuantizedLayer(site, sites[site], grid, weight_bits, rank=own)
    for site, layer in layers.items() if rotated else ():
        size, maker = layer.grid.spec.rotation, value_maker(site)
        if size and maker in layers and head_channels_of(maker) % size == 0:
            # Attention mixes tokens, not channels: the rotation may as well be of what makes them.
            made = layers[maker]
            own = len(made.branch.down) if made.branch else 0
            layers[maker] = QuantizedLayer(
                maker, sites[maker], made.grid, made.weight_bits, rank=own, row_rotation=size
            )
    return {site: layers[site] for site in sites}


def with_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a reference network, sharing its parameters, in which `layers` take their sites' places."""
    module = copy_sharing_weights(network)
    put_modules(module, layers)
    return module
