"""LET and range of what layers read, differentiable: x -> Q((x - d) / s). docs/theory.md, "LBQ" and "LET"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from intsr.calib.models.families.sd21 import may_shift
from intsr.kernels.draq import DYNAMIC, STATIC, quantize_tokens_torch
from intsr.kernels.layer_algebra import transform
from intsr.kernels.learned_range import quantize_in_range
from intsr.kernels.quantizer import SYMMETRIC_BITS
from intsr.kernels.rotation import rotation_size

# The narrowest range a grid may have: below it an fp16 engine could not hold the scale.
MIN_WIDTH = 1e-3
# Learned factors stay within e**4: further away fp16 loses digits.
MAX_LOG_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class GridSpec:
    """The limits of an input's grid."""

    channels: int
    # That the channels are on.
    axis: int
    bits: int
    symmetric: bool
    # A padded convolution adds zeros, which then need a code.
    holds_zero: bool
    # d may leave 0.
    may_shift: bool
    # Channel -> which learned (s, d) it uses, or None for no LET.
    segments: tuple[int, ...] | None
    # Size of the blocks that the input is rotated by, 0 for none.
    rotation: int = 0
    # Of `kernels.draq`; all but STATIC are for simulation alone.
    form: str = STATIC


class InputGrid(nn.Module):
    """LET and range of one tensor: x (N, C, H, W) or (N, tokens, C) float32 -> Q((x - d) / s), same shape."""

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        self.spec = spec
        count = 0 if spec.segments is None else max(spec.segments) + 1
        self.register_buffer("base_low", torch.tensor(-1.0))
        self.register_buffer("base_high", torch.tensor(1.0))
        self.register_buffer("base_scale", torch.ones(spec.channels))
        self.register_buffer("base_shift", torch.zeros(spec.channels))
        self.register_buffer("amax", torch.ones(spec.channels))
        self.low, self.high = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.log_scale, self.shift = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.zeros(count))
        index = torch.tensor(spec.segments or (), dtype=torch.long)
        self.register_buffer("index", index, persistent=False)
        # Stage one of DQC: the range of what is seen, at every step anew.
        self.dynamic = False

    @property
    def has_let(self) -> bool:
        return self.spec.segments is not None

    def scale(self) -> torch.Tensor:
        """s, (C,), positive."""
        if not self.has_let:
            return self.base_scale
        factor = self.log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
        return self.base_scale * factor[self.index]

    def offset(self) -> torch.Tensor:
        """d, (C,)."""
        if not (self.has_let and self.spec.may_shift):
            return self.base_shift
        return self.base_shift + self.shift[self.index] * self.amax

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned range of x~."""
        width = self.base_high - self.base_low
        low, high = self.base_low + self.low * width, self.base_high + self.high * width
        return self._admissible(low, high)

    def _admissible(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.spec.symmetric:
            half = 2 ** (self.spec.bits - 1)
            # Of a range that is already symmetric the low end is one step further out: no wider for that.
            amax = torch.maximum(-low * ((half - 1) / half), high).clamp_min(MIN_WIDTH)
            return -amax * (half / (half - 1)), amax
        if self.spec.holds_zero:
            low, high = low.clamp_max(0), high.clamp_min(0)
        return low, torch.maximum(high, low + MIN_WIDTH)

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """x~ = (x - d) / s."""
        if not self.has_let:
            return x
        return transform(x, self.scale(), self.offset() if self.spec.may_shift else None, self.spec.axis)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Q of an x that is transformed already."""
        if self.spec.form != STATIC:
            return quantize_tokens_torch(x, self.spec.bits, self.spec.form == DYNAMIC)
        low, high = self._admissible(x.amin(), x.amax()) if self.dynamic else self.range()
        return quantize_in_range(x, low, high, self.spec.bits)

    @torch.no_grad()
    def set_range(self, low: float, high: float) -> None:
        """A new base; what was learned of the range is forgotten."""
        ends = self._admissible(*torch.tensor([low, high], dtype=torch.float32, device=self.base_low.device))
        self.base_low.copy_(ends[0])
        self.base_high.copy_(ends[1])
        self.low.zero_()
        self.high.zero_()

    @torch.no_grad()
    def set_let(self, scale: torch.Tensor, shift: torch.Tensor, amax: torch.Tensor) -> None:
        """A new base of s, d and the amax that d moves in, (C,) each; what was learned of them is forgotten."""
        for buffer, value in ((self.base_scale, scale), (self.base_shift, shift), (self.amax, amax)):
            buffer.copy_(value)
        self.log_scale.zero_()
        self.shift.zero_()


def grid_spec(
    site: str,
    layer: nn.Conv2d | nn.Linear,
    bits: int,
    *,
    let: str = "none",
    symmetric: bool = False,
    seam: int = 0,
    rotated: bool = False,
    form: str = STATIC,
) -> GridSpec:
    """let: `channel` for s and d of each input channel, `part` for one pair each side of a concat's seam, `none`."""
    channels = layer.weight.shape[1]
    segments: tuple[int, ...] | None = None
    if let == "channel":
        segments = tuple(range(channels))
    elif let == "part" and seam and not symmetric:
        segments = (0,) * seam + (1,) * (channels - seam)
    padded = isinstance(layer, nn.Conv2d) and any(layer.padding if isinstance(layer.padding, tuple) else ())
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    rotation = rotation_size(channels) if rotated and bits < SYMMETRIC_BITS else 0
    shifts = segments is not None and may_shift(site) and not symmetric
    return GridSpec(channels, axis, bits, symmetric, padded and not shifts, shifts, segments, rotation, form)
