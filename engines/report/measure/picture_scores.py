"""How pictures differ: scores of whole pictures, the blocks that differ most, seams, and flat and smooth tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intsr.calib.data.made_pictures import smooth_tiles
from intsr.engines.report.measure.variants import HR, LR, U8, Picture, PictureStore, Variant
from intsr.engines.verify.agreement import capped_psnr_db
from intsr.runtime.measure.metrics import SSIM_WINDOW_PX, luma_from_pixels, ssim
from intsr.runtime.measure.seams import seam_score
from intsr.runtime.tiles.grid import TilePlan, plan_tiles
from intsr.runtime.upscaler import Upscaler

BLOCK_PX = 64
CROPS, CROPS_A_PICTURE = 6, 3


@dataclass(frozen=True, slots=True)
class Block:
    """A square of a picture, output pixels."""

    picture: str
    left: int
    top: int
    side_px: int
    # The root of the mean squared difference, levels of 255.
    rms_levels: float

    def cut(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Its part of (H, W, ..) pixels."""
        return pixels[self.top : self.top + self.side_px, self.left : self.left + self.side_px]


def tiling_of(picture: Picture, variant: Variant, overlap_px: int | None) -> TilePlan | None:
    """The tiles that an engine makes of the picture."""
    manifest = variant.manifest
    if manifest is None:
        return None
    overlap_px = manifest.overlap_px if overlap_px is None else overlap_px
    height, width = picture.height_px // picture.factor, picture.width_px // picture.factor
    return plan_tiles(height, width, manifest.tile_px, overlap_px)


def scores_of_picture(
    picture: Picture,
    variants: Sequence[Variant],
    store: PictureStore,
    reference: Variant | None,
    *,
    overlap_px: int | None,
    calibrated_on: bool,
) -> list[dict[str, Any]]:
    """Score every variant but the original. calibrated_on: whether ranges were taken from the picture."""
    expected = None if reference is None else store.get(picture, reference.name)
    original = store.get(picture, HR) if any(variant.kind == HR for variant in variants) else None
    tilings = {variant.name: tiling_of(picture, variant, overlap_px) for variant in variants}
    scores = []
    for variant in variants:
        if variant.kind == HR:
            continue
        pixels, own = store.get(picture, variant.name), tilings[variant.name]
        score: dict[str, Any] = {
            "picture": picture.name,
            "variant": variant.name,
            "width_px": picture.width_px,
            "height_px": picture.height_px,
            "tiles": len(own.tiles) if own else None,
            # None with one tile.
            "seam_score": None,
            # On RGB.
            "psnr_to_reference_db": None,
            # The largest difference of any component, of 255.
            "max_error_levels": None,
            # Against the original, on luma.
            "psnr_y_db": None,
            "ssim_y": None,
            # Wall time of the one run that made the picture.
            "ms": picture.ms.get(variant.name),
            "calibrated_on": calibrated_on,
        }
        # Pictures that no tile ever touched are scored at the last engine's lines: what they themselves hold there.
        plan = own or next((tiling for tiling in reversed(tilings.values()) if tiling), None)
        if plan is not None and len(plan.tiles) > 1:
            score["seam_score"] = seam_score(pixels, plan, picture.factor)
        if expected is not None and variant is not reference and variant.kind != LR:
            score["psnr_to_reference_db"] = capped_psnr_db(pixels, expected)
            score["max_error_levels"] = int(np.abs(pixels.astype(np.int16) - expected).max())
        if original is not None:
            luma, wanted = luma_from_pixels(pixels), luma_from_pixels(original)
            score["psnr_y_db"] = capped_psnr_db(luma, wanted)
            score["ssim_y"] = ssim(luma, wanted) if min(luma.shape) >= SSIM_WINDOW_PX else None
        scores.append(score)
    return scores


def mean_scores(scores: Sequence[dict[str, Any]], variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return a mapping for each variant: the mean of what there is, None where nothing is; of seams the largest.

    Pictures that ranges were taken from flatter: they are left out (`left_out`: how many) where there are others.
    """
    means = []
    for variant in variants:
        every = [score for score in scores if score["variant"] == variant.name]
        own = [score for score in every if not score["calibrated_on"]] or every
        if not own:
            continue
        mean: dict[str, Any] = {"variant": variant.name, "pictures": len(own), "left_out": len(every) - len(own)}
        for key in ("psnr_to_reference_db", "psnr_y_db", "ssim_y", "ms"):
            values = [score[key] for score in own if score[key] is not None]
            mean[key] = float(np.mean(values)) if values else None
        for key in ("max_error_levels", "seam_score"):
            mean[key] = max((score[key] for score in own if score[key] is not None), default=None)
        means.append(mean)
    return means


def smooth_scores(engine: Upscaler, reference: Upscaler) -> list[dict[str, Any]]:
    """Upscale every one of `smooth_tiles` with both: `name`, `psnr_db` and `max_levels` of each, of 8 bits.

    They show what a mean over photographs hides; a colour fix, which would hide most of it, is left out. Raises what
    upscaling raises.
    """
    scores = []
    for name, pixels in smooth_tiles(engine.tile_px).items():
        got, expected = (np.asarray(each.upscale(pixels, color_fix="none")) for each in (engine, reference))
        levels = int(np.abs(got.astype(int) - expected).max())
        scores.append({"name": name, "psnr_db": round(capped_psnr_db(got, expected), 2), "max_levels": levels})
    return scores


def error_levels(pixels: U8, expected: U8) -> NDArray[np.float64]:
    """(H, W): root mean square over the three components of their difference, levels of 255."""
    difference = pixels.astype(np.float64) - expected
    levels: NDArray[np.float64] = np.sqrt(np.square(difference).mean(axis=2))
    return levels


def worst_blocks(picture: Picture, error: NDArray[np.float64]) -> list[Block]:
    """At most CROPS_A_PICTURE blocks that do not overlap, the largest mean squared error first."""
    side = min(BLOCK_PX, *error.shape)
    sums = np.pad(np.square(error), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    means = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    blocks: list[Block] = []
    while len(blocks) < CROPS_A_PICTURE:
        top, left = (int(place) for place in np.unravel_index(int(means.argmax()), means.shape))
        if means[top, left] <= 0:
            break
        blocks.append(Block(picture.name, left, top, side, float(np.sqrt(means[top, left]))))
        means[max(top - side + 1, 0) : top + side, max(left - side + 1, 0) : left + side] = -1
    return blocks
