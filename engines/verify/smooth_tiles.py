"""How far an engine's flat and smooth pictures are from another's: what a mean over photographs hides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intsr.calib.data.made_pictures import smooth_tiles
from intsr.engines.verify.agreement import capped_psnr_db
from intsr.runtime.upscaler import Upscaler


@dataclass(frozen=True, slots=True)
class SmoothScore:
    """One made picture."""

    name: str
    # Over all its pixels, 8 bits.
    psnr_db: float
    # The largest difference of one of them, of 255.
    max_levels: int


def smooth_scores(engine: Upscaler, reference: Upscaler) -> list[SmoothScore]:
    """Upscale every one of `smooth_tiles` with both, without colour fix, which would hide most of the difference.

    Raises what upscaling raises.
    """
    scores = []
    for name, pixels in smooth_tiles(engine.tile_px).items():
        got, expected = (np.asarray(each.upscale(pixels, color_fix="none")) for each in (engine, reference))
        levels = int(np.abs(got.astype(int) - expected).max())
        scores.append(SmoothScore(name, round(capped_psnr_db(got, expected), 2), levels))
    return scores
