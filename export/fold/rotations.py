"""Fold rotations where they cost nothing: into what makes the values that attention mixes.

    to_out(A V) = (W H) (A (V H)),   V H = x W_v^T H

since attention A mixes tokens, not channels, as long as no block of H reaches over two heads. docs/theory.md,
"Rotations".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from intsr.calib.models.families.sd21 import let_maker, let_sink, value_maker
from intsr.kernels.rotation import rotate

if TYPE_CHECKING:
    from intsr.calib.calibration.types import SiteQuantizer


def fuse_rotations(module: nn.Module, integer: Collection[str], sites: Mapping[str, SiteQuantizer]) -> dict[str, int]:
    """What each integer layer's input still has to be rotated by; the others' makers are changed in `module`.

    A layer whose rows are rotated gives H y from here on, which the one behind attention takes as it is.
    """
    rotations = {site: sites[site].rotation for site in integer}
    for site, size in rotations.items():
        maker: Any = None
        if size and value_maker(site) in integer and sites[value_maker(site)].row_rotation == size:
            maker = module.get_submodule(value_maker(site))
            if maker.bias is not None:
                maker.bias = nn.Parameter(rotate(maker.bias, size, 0), requires_grad=False)
        elif size and let_sink(site).into == "value":
            maker = module.get_submodule(let_maker(site))
            if maker.value.shape[-1] % size:
                continue
            maker.value = rotate(maker.value, size, -1)
        if maker is not None:
            rotations[site] = 0
    return rotations
