"""Weight-only engines: int8 weights, float activations. What they need of a calibration is little, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.models.families.sd21 import bits_of_site
from intsr.calib.models.sites import sites_of_model
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import ModelSource

METHOD = "static"


def static_calibration(source: ModelSource, bits: Bits, parts: tuple[str, ...], tile_px: int) -> Calibration:
    """Each output channel's own largest weight, and no picture: a calibration for weight-only engines alone.

    The activations' ranges are [0, 0]; `Lowering.activation` `float` never reads them. One part is held at a time.
    """
    sites = {}
    for part in parts:
        for site in sites_of_model(source.load(part), (part,)):
            weight_bits, activation_bits = bits_of_site(site, bits)
            sites[site] = SiteQuantizer(0.0, 0.0, activation_bits, weight_bits)
    return Calibration(METHOD, bits, parts, source.spec.name, source.digest, 0, tile_px, 0.0, 0, sites)
