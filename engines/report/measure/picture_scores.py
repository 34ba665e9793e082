"""How pictures differ: scores of whole pictures, the blocks that differ most, and seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intsr.engines.report.measure.variants import HR, LR, U8, Picture, PictureStore, Variant
from intsr.engines.verify.agreement import capped_psnr_db
from intsr.runtime.measure.metrics import SSIM_WINDOW_PX, luma_from_pixels, ssim
from intsr.runtime.measure.seams import seam_score
from intsr.runtime.tiles.grid import TilePlan, plan_tiles

BLOCK_PX = 64
CROPS, CROPS_A_PICTURE = 6, 3


@dataclass(frozen=True, slots=True)
class Score:
    """One picture of one variant."""

    picture: str
    variant: str
    width_px: int
    height_px: int
    tiles: int | None = None
    # None with one tile; of pictures that are not made of tiles, at the borders of the last engine's.
    seam_score: float | None = None
    # On RGB.
    psnr_to_reference_db: float | None = None
    # The largest difference of any component, of 255.
    max_error_levels: int | None = None
    # Against the original, on luma.
    psnr_y_db: float | None = None
    ssim_y: float | None = None
    # Wall time of the one run that made the picture.
    ms: float | None = None
    # Whether ranges were taken from it.
    calibrated_on: bool = False


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


@dataclass(frozen=True, slots=True)
class Beside:
    """What all variants of one picture are held against, as far as it is there. tiling: of the last engine."""

    reference: Variant | None
    expected: U8 | None
    original: U8 | None
    tiling: TilePlan | None
    calibrated_on: bool


def scores_of_picture(
    picture: Picture,
    variants: Sequence[Variant],
    store: PictureStore,
    reference: Variant | None,
    *,
    overlap_px: int | None,
    calibrated_on: bool,
) -> list[dict[str, Any]]:
    """Score every variant but the original: a `Score` each, as mappings."""
    engine = next((variant for variant in reversed(variants) if variant.manifest), None)
    beside = Beside(
        reference,
        None if reference is None else store.get(picture, reference.name),
        store.get(picture, HR) if any(variant.kind == HR for variant in variants) else None,
        tiling_of(picture, engine, overlap_px) if engine else None,
        calibrated_on,
    )
    scored = [variant for variant in variants if variant.kind != HR]
    return [
        asdict(_score(picture, variant, store.get(picture, variant.name), beside, overlap_px)) for variant in scored
    ]


def _score(picture: Picture, variant: Variant, pixels: U8, beside: Beside, overlap_px: int | None) -> Score:
    values: dict[str, Any] = {"calibrated_on": beside.calibrated_on}
    if beside.expected is not None and variant is not beside.reference and variant.kind != LR:
        values["psnr_to_reference_db"] = capped_psnr_db(pixels, beside.expected)
        values["max_error_levels"] = int(np.abs(pixels.astype(np.int16) - beside.expected).max())
    if beside.original is not None:
        luma, original = luma_from_pixels(pixels), luma_from_pixels(beside.original)
        values["psnr_y_db"] = capped_psnr_db(luma, original)
        values["ssim_y"] = ssim(luma, original) if min(luma.shape) >= SSIM_WINDOW_PX else None
    own = tiling_of(picture, variant, overlap_px)
    if own is not None:
        values |= {"tiles": len(own.tiles), "ms": picture.ms[variant.name]}
    # Pictures that no tile ever touched are scored at the same lines: what the picture itself holds there.
    plan = own or beside.tiling
    if plan is not None and len(plan.tiles) > 1:
        values["seam_score"] = seam_score(pixels, plan, picture.factor)
    return Score(picture.name, variant.name, picture.width_px, picture.height_px, **values)


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
        mean: dict[str, Any] = {
            "variant": variant.name,
            "pictures": len(own),
            "left_out": len(every) - len(own),
        }
        for key in ("psnr_to_reference_db", "psnr_y_db", "ssim_y", "ms"):
            values = [score[key] for score in own if score[key] is not None]
            mean[key] = float(np.mean(values)) if values else None
        for key in ("max_error_levels", "seam_score"):
            mean[key] = max((score[key] for score in own if score[key] is not None), default=None)
        means.append(mean)
    return means


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
