"""GroupNorm, SiLU, LET and Quantize in Triton, for torch tensors: where torch runs and nvcc does not.

One program a picture and group, three passes over the group (mean, variance, codes), the later two out of the cache
where it fits. The same arithmetic as group_norm.cu. Needs the extra `triton`; TRITON_INTERPRET=1 runs it on a CPU.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.errors import MissingLibraryError, UsageError
from intsr.kernels.reference.group_norm import CODE_OFFSET, NormQuantize

if TYPE_CHECKING:
    import torch

try:
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    triton = tl = None


# Triton evaluates annotations, with no other names at hand than its own: constants alone have any.
def _group_norm_kernel(  # type: ignore[no-untyped-def, unused-ignore]
    x_pointer,
    out_pointer,
    gamma_pointer,
    beta_pointer,
    shift_pointer,
    multiplier_pointer,
    pixels,
    channels,
    epsilon,
    zero_point,
    highest,
    group_size: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    activation: tl.constexpr,
):
    picture, group = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, columns)
    channel = group * group_size + column
    used = column < group_size
    base = picture.to(tl.int64) * pixels * channels
    count = pixels * group_size * 1.0

    total = tl.zeros((rows, columns), tl.float32)
    for start in range(0, pixels, rows):
        pixel = start + tl.arange(0, rows)
        mask = (pixel[:, None] < pixels) & used[None, :]
        place = base + pixel[:, None].to(tl.int64) * channels + channel[None, :]
        total += tl.load(x_pointer + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / count

    squares = tl.zeros((rows, columns), tl.float32)
    for start in range(0, pixels, rows):
        pixel = start + tl.arange(0, rows)
        mask = (pixel[:, None] < pixels) & used[None, :]
        place = base + pixel[:, None].to(tl.int64) * channels + channel[None, :]
        difference = tl.load(x_pointer + place, mask=mask, other=0.0).to(tl.float32) - mean
        squares += tl.where(mask, difference * difference, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / count + epsilon)

    gamma = tl.load(gamma_pointer + channel, mask=used, other=0.0)
    beta = tl.load(beta_pointer + channel, mask=used, other=0.0)
    shift = tl.load(shift_pointer + channel, mask=used, other=0.0)
    multiplier = tl.load(multiplier_pointer + channel, mask=used, other=0.0)
    for start in range(0, pixels, rows):
        pixel = start + tl.arange(0, rows)
        mask = (pixel[:, None] < pixels) & used[None, :]
        place = base + pixel[:, None].to(tl.int64) * channels + channel[None, :]
        value = tl.load(x_pointer + place, mask=mask, other=0.0).to(tl.float32)
        y = (value - mean) * (factor * gamma)[None, :] + beta[None, :]
        if activation:
            y = y / (1.0 + tl.exp(-tl.maximum(y, -80.0)))
        scaled = (y - shift[None, :]) * multiplier[None, :]
        # 1.5 * 2**23 added and taken away rounds a float32 below 2**22 to the nearest integer, half to even.
        scaled = tl.minimum(tl.maximum(scaled, -2097152.0), 2097152.0)
        code = (scaled + 12582912.0) - 12582912.0 + zero_point
        code = tl.minimum(tl.maximum(code, -128.0), highest * 1.0)
        tl.store(out_pointer + place, code.to(tl.int8), mask=mask)


@functools.cache
def _compiled_on_use() -> Any:
    if triton is None:
        raise MissingLibraryError("triton", "triton", "the Triton kernels")
    return triton.jit(_group_norm_kernel)


def _launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on torch's current GPU, whichever has the tensors."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def group_norm_quantize_triton(x: torch.Tensor, norm: NormQuantize) -> torch.Tensor:
    """(N, H, W, C) float16, contiguous -> int8 codes, same shape, as `reference_norm.group_norm_quantize`.

    Raises MissingLibraryError where triton is not installed, UsageError for another array.
    """
    import torch

    if x.dtype != torch.float16 or x.dim() != 4 or x.shape[3] != len(norm.gamma) or not x.is_contiguous():
        got = f"{x.dtype} {tuple(x.shape)}, strides {x.stride()}"
        raise UsageError("x", got, f"contiguous float16 (N, H, W, {len(norm.gamma)})")
    pictures, height, width, channels = x.shape
    group_size = channels // norm.groups
    columns = 1 << (group_size - 1).bit_length()
    arrays = (norm.gamma, norm.beta, norm.let_shift, norm.multiplier)
    constants = [torch.from_numpy(np.ascontiguousarray(array)).to(x.device) for array in arrays]
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    with _launching_on(x.device):
        _compiled_on_use()[(pictures, norm.groups)](
            x,
            out,
            *constants,
            height * width,
            channels,
            norm.epsilon,
            norm.grid.zero_point - CODE_OFFSET,
            norm.grid.qmax - CODE_OFFSET,
            group_size=group_size,
            columns=columns,
            rows=max(1, 4096 // columns),
            activation=norm.activation,
        )
    return out
