"""Which learned equivalent transformations cost nothing, told by the sites' names and numbers alone.

The rules are those of `fold_let.fuse_let`, which needs the networks; here nothing but NumPy is needed:

    all readers of one norm share (s, d)        free, into gamma and beta
    to_out behind attention, d = 0              free, into to_v's rows (or the constant value)
    ff.net.2 behind GEGLU, d = 0                free, into the value rows of ff.net.0.proj
    anywhere else                               explicit, an elementwise step in front of the quantizer
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from intsr.kernels.quantizer import round_scale

Array = NDArray[np.float32]
BEHIND_ROWS = (".to_out.0", ".ff.net.2")
SELF_ATTENTION = ("to_q", "to_k", "to_v")


def explicit_sites(lets: Mapping[str, tuple[Array, Array]]) -> frozenset[str]:
    """The sites of `lets` whose x~ an engine makes in a step of its own; the others fold for free.

    lets: site -> (s, d), float32 (Cin,) each, of every layer that runs in integers and has a LET, and of no other:
    one reader of a norm that stays float keeps the others explicit.
    """
    return frozenset(site for site in lets if not (_behind_rows(site, lets) or _behind_norm(site, lets)))


def norm_readers(site: str) -> tuple[str, ...]:
    """The sites that read the norm which `site` reads without an activation between, itself included; else none."""
    owner, _, name = site.rpartition(".")
    if name in SELF_ATTENTION and not owner.endswith(".attn2"):
        return tuple(f"{owner}.{sharer}" for sharer in SELF_ATTENTION)
    alone = site.endswith((".attn2.to_q", ".proj_in", ".ff.net.0.proj"))
    return (site,) if alone else ()


def _behind_norm(site: str, lets: Mapping[str, tuple[Array, Array]]) -> bool:
    readers = norm_readers(site)
    if not readers or not all(reader in lets for reader in readers):
        return False
    inverse, d = _as_folded(*lets[site])
    others = (_as_folded(*lets[reader]) for reader in readers)
    return all(np.array_equal(inverse, other[0]) and np.array_equal(d, other[1]) for other in others)


def _as_folded(s: Array, d: Array) -> tuple[Array, Array]:
    """1 / s as engines hold it: scales that differ less than fp16 can say are one and the same."""
    return round_scale(np.float32(1) / s), d


def _behind_rows(site: str, lets: Mapping[str, tuple[Array, Array]]) -> bool:
    return site.endswith(BEHIND_ROWS) and not lets[site][1].any()
