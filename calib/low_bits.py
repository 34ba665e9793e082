"""Few bits may lose the picture: said when a calibration is made, with the number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from intsr.calib.data.pictures import calibration_inputs, guard_side_px
from intsr.calib.models.modules import put_modules
from intsr.calib.models.phases import in_phases
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import integer_sites
from intsr.calib.observe.fake_quant import calibrated_layer
from intsr.runtime.measure.metrics import psnr_db_from_mse

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration
    from intsr.calib.models.open import SRModel

# From 5 bits on no method here has lost the picture; below, two more passes over two small tiles are worth it.
LOW_BITS, PICTURES = 4, 2


def low_bits_warning(model: SRModel, calibration: Calibration, pictures: Sequence[Path]) -> str | None:
    """One line where the calibrated model is further from full precision than plain enlargement is; else None.

    Looked at where weights or activations have LOW_BITS or fewer: a tile of each of the first pictures.
    """
    bits = calibration.bits
    if min(bits.weights or 0, bits.activations or 0) > LOW_BITS:
        return None
    side_px = guard_side_px(model.spec, calibration.tile_px)
    inputs = [torch.from_numpy(x) for _, x in calibration_inputs(pictures[:PICTURES], model.spec, side_px)]
    exact = [_picture(model, x) for x in inputs]
    quantized = in_phases(model.load(), calibration.phases)
    layers = integer_sites(quantized, calibration.parts)
    put_modules(
        quantized.modules, {site: calibrated_layer(layer, calibration.sites[site]) for site, layer in layers.items()}
    )
    got = _psnr_db([_picture(quantized, x) for x in inputs], exact)
    enlarged = _psnr_db(
        [functional.interpolate(x, picture.shape[2:]) for x, picture in zip(inputs, exact, strict=True)], exact
    )
    if got >= enlarged:
        return None
    return (
        f"warning: {bits} with {calibration.method} is {got:.1f} dB from full precision on these pictures, plain "
        f"enlargement {enlarged:.1f} dB: take more bits, or a method that learns"
    )


@torch.no_grad()
def _picture(model: SRModel, x: torch.Tensor) -> torch.Tensor:
    for network in reference_networks(model).values():
        x = network(x)
    return x.clamp(-1, 1)


def _psnr_db(pictures: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    errors = [float((a - b).square().mean()) for a, b in zip(pictures, exact, strict=True)]
    # Pictures lie in [-1, 1].
    return psnr_db_from_mse(float(np.mean(errors)), peak=2)
