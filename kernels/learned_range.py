"""Learned ranges: quantize and dequantize in torch, with gradients for the input and for both ends of the range.

    D = (high - low) / (2**b - 1),   z = R(low / D),   y = (clamp(R(x / D) - z, 0, 2**b - 1) + z) D

R has the identity's gradient (straight-through). With r = (z - low / D) / (2**b - 1):

    within the range   dy/dx = 1   dy/dD = R(x / D) - x / D,   dD/dhigh = -dD/dlow = 1 / (2**b - 1)
    above              dy/dx = 0   dy/dhigh = 1 + r            dy/dlow = -r
    below              dy/dx = 0   dy/dhigh = r                dy/dlow = 1 - r

docs/theory.md, "LBQ". D is rounded as in `quantizer.round_scale`: what is trained is what engines hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from intsr.kernels.quantizer import MAX_SCALE, MIN_SCALE


def round_scale_torch(scale: torch.Tensor) -> torch.Tensor:
    """`quantizer.round_scale` in torch: the nearest scale that fp16 holds, float32."""
    return scale.clamp(MIN_SCALE, MAX_SCALE).half().float()


def _sum_to(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sum over every axis along which `shape` is 1; `shape` has the same rank or none."""
    return values.sum() if not shape else values.sum_to_size(shape)


def _sum_of_products(a: torch.Tensor, b: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if not shape and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.flatten(), b.flatten())
    return _sum_to(a * b, shape)


def _in_full(x: torch.Tensor) -> torch.Tensor:
    """Float32 of what autocast has made bfloat16: with 8 bits of its own it would round codes a second time, and the
    ends' gradients, which are sums of rounding errors, would be that rounding's.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _RangeQuantize(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, steps: int) -> torch.Tensor:
        scale = round_scale_torch((high - low) / steps)
        first = (low / scale).round()
        y = torch.div(x, scale).round_()
        y = torch.minimum(torch.maximum(y, first), first + steps) if first.ndim else y.clamp_(first, first + steps)
        y.mul_(scale)
        ctx.save_for_backward(x, y, low, scale, first)
        ctx.steps = steps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, y, low, scale, first = ctx.saved_tensors
        steps, shape = ctx.steps, low.shape
        error = y - x
        # Within the range nothing is further than half a step from its code.
        outside = error.abs() > 0.5001 * scale
        grad_x = grad.masked_fill(outside, 0)
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None
        grad_scale = _sum_of_products(grad_x, error, shape) / scale
        beyond = grad - grad_x
        both = _sum_to(beyond, shape)
        # A value above has a negative error, one below a positive one.
        difference = _sum_of_products(beyond, error.sign_(), shape)
        grad_above, grad_below = (both - difference) / 2, (both + difference) / 2
        r = (first - low / scale) / steps
        grad_high = grad_scale / steps + (1 + r) * grad_above + r * grad_below
        grad_low = -grad_scale / steps - r * grad_above + (1 - r) * grad_below
        return grad_x, grad_low, grad_high, None


def quantize_in_range(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    """y of the algebra above, x's shape; float32, also of a bfloat16 x.

    low, high: scalars for one grid, or of x's rank with 1 along every axis that shares a grid; low < high.
    """
    y: torch.Tensor = _RangeQuantize.apply(*map(_in_full, (x, low, high)), 2**bits - 1)
    return y


def quantize_symmetric(x: torch.Tensor, reach: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes -n to n of n = 2**(bits - 1) - 1, D = reach / n; gradients for both. Shapes as in `quantize_in_range`."""
    most = 2 ** (bits - 1) - 1
    reach = _in_full(reach).clamp_min(most * MIN_SCALE)  # below, a rounded-up scale would leave the codes off centre
    y: torch.Tensor = _RangeQuantize.apply(_in_full(x), -reach, reach, 2 * most)
    return y
