"""Nearest upsampling by two and the 3x3 convolution behind it, as four 2x2 convolutions of the small map.

Output pixel (2i + a, 2j + b) sees rows i - 1 + a and i + a of the small map, and columns likewise: taps that fall on
the same pixel add up. Exact, borders too, with 16 products a small pixel and pair of channels instead of 36:

    P_ab = S_a W S_b^T,   S_0 = [1 0 0; 0 1 1],   S_1 = [1 1 0; 0 0 1]

The four phases are the output channels of one convolution, so that all that is done to a layer is done to them: each
has weights, scales and learned numbers of its own. What is lowered is a convolution for each, and DepthToSpace.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.models.modules import copy_sharing_weights, put_modules

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

# In narrower ones the join, a pass over the large map, costs what the convolutions save: docs/measure/performance.md.
MIN_CHANNELS = 128
# (a, b) of each phase, in the order of the output channels.
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
# S_0 and S_1, (phase, tap of two, tap of three).
TAPS = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@torch.library.custom_op("intsr::join_phases", mutates_args=())
def join_phases(y: torch.Tensor) -> torch.Tensor:
    """(N, 4C, H + 1, W + 1) -> (N, C, 2H, 2W): pixel (2i + a, 2j + b) is (i + a, j + b) of phase 2a + b."""
    count, channels, height, width = y.shape[0], y.shape[1] // 4, y.shape[2] - 1, y.shape[3] - 1
    joined = y.new_empty(count, channels, 2 * height, 2 * width)
    for part, (a, b) in zip(y.split(channels, dim=1), PHASES, strict=True):
        joined[:, :, a::2, b::2] = part[:, :, a : a + height, b : b + width]
    return joined


@join_phases.register_fake
def _(y: torch.Tensor) -> torch.Tensor:
    return y.new_empty(y.shape[0], y.shape[1] // 4, 2 * (y.shape[2] - 1), 2 * (y.shape[3] - 1))


def _split_gradient(_: Any, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of `join_phases`' input: the same pixels, and 0 where none was taken."""
    height, width = gradient.shape[2] // 2, gradient.shape[3] // 2
    parts = []
    for a, b in PHASES:
        part = gradient.new_zeros(*gradient.shape[:2], height + 1, width + 1)
        part[:, :, a : a + height, b : b + width] = gradient[:, :, a::2, b::2]
        parts.append(part)
    return torch.cat(parts, dim=1)


join_phases.register_autograd(_split_gradient)


class PhaseUpsample2D(nn.Module):
    """diffusers' Upsample2D, (N, C, H, W) -> (N, C', 2H, 2W). conv: 2x2, of 4 C' channels, phase by phase."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """conv: 3x3, padded by one, behind nearest upsampling by two."""
        super().__init__()
        with torch.device("meta"):
            self.conv = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, padding=1, bias=conv.bias is not None)
        self.conv.weight = nn.Parameter(phase_weight(conv.weight.detach()), requires_grad=False)
        if conv.bias is not None:
            self.conv.bias = nn.Parameter(conv.bias.detach().repeat(4), requires_grad=False)

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        """Raises ValueError for a size: only doubling has phases."""
        if output_size is not None:
            raise ValueError(f"upsampling to {output_size}, expected twice the input")
        joined: torch.Tensor = join_phases(self.conv(hidden_states))
        return joined


def phase_weight(weight: torch.Tensor) -> torch.Tensor:
    """W (C', C, 3, 3) -> (4 C', C, 2, 2), same dtype: P_00, P_01, P_10, P_11; sums are taken in float64."""
    taps = torch.tensor(TAPS, dtype=torch.float64, device=weight.device)
    parts = [torch.einsum("oikl,pk,ql->oipq", weight.double(), taps[a], taps[b]) for a, b in PHASES]
    return torch.cat(parts).to(weight.dtype)


def wide_upsamplers(model: SRModel) -> tuple[str, ...]:
    """Return the sites of the upsamplers that are worth their phases, of the parts that are there."""
    return tuple(site for site, module in _upsamplers(model).items() if module.conv.in_channels >= MIN_CHANNELS)


def in_phases(model: SRModel, sites: Collection[str] | None = None) -> SRModel:
    """The model with upsamplers in phases; its other weights are shared. sites: which; None for the wide ones.

    Sites of parts that are not there are passed over.
    """
    wanted = wide_upsamplers(model) if sites is None else sites
    found = {site: module for site, module in _upsamplers(model).items() if site in wanted}
    parts: dict[str, Any] = {}
    for part in {site.partition(".")[0] for site in found}:
        parts[part] = copy_sharing_weights(getattr(model, part))
        own = {site: module for site, module in found.items() if site.startswith(f"{part}.")}
        put_modules(parts[part], {_module_name(site): PhaseUpsample2D(module.conv) for site, module in own.items()})
    return replace(model, **parts)


def _upsamplers(model: SRModel) -> dict[str, Any]:
    """Site of the convolution -> diffusers' Upsample2D."""
    from diffusers.models.upsampling import Upsample2D

    return {
        f"{name}.conv": module for name, module in model.modules.named_modules() if isinstance(module, Upsample2D)
    }


def _module_name(site: str) -> str:
    """Below the part."""
    return site.partition(".")[2].removesuffix(".conv")
