"""Random LoRA pairs, such that a network that they are merged into stays as finite as it was."""

from __future__ import annotations

import torch

from intsr.calib.models.families.family import Randomize

# Deviation of s B A, next to the base weights' own.
SHARE = 0.1


def random_pair(
    names: tuple[str, str], shape: tuple[int, ...], rank: int, scale: float, randomize: Randomize
) -> dict[str, torch.Tensor]:
    """Make A (r, Cin, kh, kw) and B (Cout, r, 1, 1) for a weight of `shape`, or both of two dimensions.

    names: of A and B, which are also what their values are drawn by. scale: s.
    """
    a, b = (randomize(name, size) for name, size in zip(names, pair_shapes(shape, rank), strict=True))
    return dict(zip(names, (a, b.mul_(SHARE / scale)), strict=True))


def pair_shapes(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for a weight of `shape`, as PEFT has them."""
    return (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
