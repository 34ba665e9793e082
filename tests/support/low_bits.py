"""A MaxMin calibration made into one of few bits, with branches or rotations that nothing has learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.models.families.sd21 import value_maker
from intsr.calib.models.open import SRModel
from intsr.calib.models.sites import head_channels, integer_sites
from intsr.kernels.rotation import rotation_size
from intsr.types import Bits


def with_bits(calibration: Calibration, bits: Bits) -> Calibration:
    """Every site at those bits."""
    assert bits.weights is not None and bits.activations is not None
    sites = {
        site: replace(q, weight_bits=bits.weights, activation_bits=bits.activations)
        for site, q in calibration.sites.items()
    }
    return replace(calibration, sites=sites, bits=bits)


def with_branches(sites: dict[str, SiteQuantizer], model: SRModel, rank: int = 2) -> dict[str, SiteQuantizer]:
    """Every integer layer with a random branch."""
    rng = np.random.default_rng(3)
    result = dict(sites)
    for site, layer in integer_sites(model, ("unet", "vae")).items():
        shapes = (len(layer.weight), rank), (rank, *layer.weight.shape[1:])
        up, down = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in shapes)
        result[site] = replace(sites[site], branch_up=up, branch_down=down)
    return result


def with_rotations(sites: dict[str, SiteQuantizer], model: SRModel) -> dict[str, SiteQuantizer]:
    """Every integer layer's input rotated, by what makes it where that costs nothing."""
    result = dict(sites)
    layers = integer_sites(model, ("unet", "vae"))
    for site, layer in layers.items():
        size, maker = rotation_size(layer.weight.shape[1]), value_maker(site)
        # Nothing reaches further than twice as far.
        q = result[site]
        reach = 2 * max(-q.x_min, q.x_max)
        result[site] = replace(q, rotation=size, x_min=-reach, x_max=reach)
        if maker in layers and size and head_channels(model, maker) % size == 0:
            result[maker] = replace(result[maker], row_rotation=size)
    return result
