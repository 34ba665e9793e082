"""Rotations by block-diagonal regular Hadamard matrices: every block of channels spreads its outliers over itself.

    W x = (W H) (H x),   H = H^T = H^-1

H has blocks of 4, 16 or 64 channels, Kronecker powers of the regular matrix of 4, divided by the root of their size.
docs/theory.md, "Rotations".
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# The largest that divides a layer's channels is taken.
SIZES = (64, 16, 4)
_REGULAR = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float64)


@cache
def hadamard(size: int) -> NDArray[np.float64]:
    """One block, (size, size), symmetric and orthogonal. Its entries are powers of two: exact in every float type."""
    if size == 4:
        return _REGULAR / 2
    return np.asarray(np.kron(_REGULAR / 2, hadamard(size // 4)), np.float64)


def rotation_size(channels: int) -> int:
    """Return the size of the blocks for so many channels; 0 where none divides them."""
    return next((size for size in SIZES if channels % size == 0), 0)


def rotate(x: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """H x along the channels on `axis`, x's shape and dtype; size 0 for none."""
    if not size:
        return x
    import torch

    block = torch.from_numpy(hadamard(size)).to(x)
    return (x.movedim(axis, -1).unflatten(-1, (-1, size)) @ block).flatten(-2).movedim(-1, axis)
