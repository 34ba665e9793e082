"""How far an engine's flat and smooth pictures are from another's: what a mean over photographs hides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intsr.calib.data.made_pictures import smooth_tiles
from intsr.runtime.measure.metrics import psnr_db
from intsr.runtime.upscaler import Upscaler

EXACT_DB = 200.0  # of equal pictures: JSON has no infinity


@dataclass(frozen=True, slots=True)
class SmoothScore:
    """One made picture. psnr_db: over all its pixels, 8 bits. max_levels: the largest difference of one of them."""

    name: str
    psnr_db: float
    max_levels: int


def smooth_scores(engine: Upscaler, reference: Upscaler) -> list[SmoothScore]:
    """Of every one of `smooth_tiles`, a tile of the engine's, without colour fix, which would hide most of it.

    Raises what upscaling raises.
    """
    scores = []
    for name, pixels in smooth_tiles(engine.tile_px).items():
        got, expected = (
            np.asarray(each.upscale(pixels, color_fix="none")).astype(np.float64) for each in (engine, reference)
        )
        decibels = min(psnr_db(got, expected), EXACT_DB)
        scores.append(SmoothScore(name, round(decibels, 2), int(np.abs(got - expected).max())))
    return scores


def worst_score(scores: Sequence[SmoothScore]) -> SmoothScore:
    return min(scores, key=lambda score: score.psnr_db)
