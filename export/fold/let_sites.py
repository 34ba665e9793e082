"""Tell which learned equivalent transformations cost nothing, by the sites' names and numbers alone.

The places are `LET_SINKS` of the model's family; nothing but NumPy is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from intsr.calib.models.families.sd21 import let_readers, let_sink
from intsr.kernels.quantizer import round_scale

Array = NDArray[np.float32]


def explicit_sites(lets: Mapping[str, tuple[Array, Array]], rotated: Collection[str] = ()) -> frozenset[str]:
    """Return the sites of `lets` whose x~ an engine makes in a step of its own; the others fold for free.

    lets: site -> (s, d), float32 (Cin,) each, of every layer that runs in integers and has a LET, and of no other:
    one reader of a norm that stays float keeps the others explicit. rotated: sites whose input is rotated by a step
    of its own, which s then comes behind.
    """
    return frozenset(site for site in lets if site in rotated or not _folds(site, lets))


def _folds(site: str, lets: Mapping[str, tuple[Array, Array]]) -> bool:
    into = let_sink(site).into
    if into in ("rows", "value"):
        return not lets[site][1].any()
    readers = let_readers(site)
    if into == "none" or not all(reader in lets for reader in readers):
        return False
    # 1 / s as engines hold it: scales that differ less than fp16 can say are one and the same.
    inverse, d = round_scale(np.float32(1) / lets[site][0]), lets[site][1]
    others = [lets[reader] for reader in readers]
    return all(np.array_equal(round_scale(np.float32(1) / s), inverse) and np.array_equal(d, e) for s, e in others)
