"""How close pictures are to their originals: PSNR and SSIM on luma, as super-resolution papers report them.

Luma is BT.601's limited range, 16 to 235, with a peak of 255; everything is in float64. PSNR takes it unrounded, SSIM
by one of two rules (`SsimRule`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from intsr.arrays import Array
from intsr.errors import ImageError, UsageError
from intsr.optional import require
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES
from intsr.runtime.pictures.reader import read_pixels

PEAK = 255.0
# Reported where there is no difference at all: JSON has no infinity.
EXACT_DB = 200.0
# BT.601: full-scale R, G and B add 219 levels to black's 16.
LUMA_WEIGHTS = np.array([65.481, 128.553, 24.966])
LUMA_BLACK = 16.0
SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
# pyiqa: luma rounded to whole levels and negative structure terms counted as 0, which is what papers on one-step
# diffusion print. wang: neither, as the measure was published.
SsimRule = Literal["pyiqa", "wang"]
# Names that pyiqa knows, as papers report them. All need the `metrics` extra, whose licence is non-commercial.
PERCEPTUAL_METRICS = ("lpips", "dists", "niqe", "musiq", "maniqa", "clipiqa")
_MOST_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one picture, or the mean of many."""

    name: str
    # Infinite for identical pictures.
    psnr_y_db: float
    # At most 1.
    ssim_y: float
    perceptual: Mapping[str, float] = field(default_factory=dict)


def luma_from_pixels(pixels: Array) -> Array:
    """Return luma of (H, W, 3) RGB or (H, W) grey float64 in [0, 255]: (H, W) float64 in [16, 235], unrounded.

    A grey level counts as three equal components.
    """
    if pixels.ndim == 2:
        levels: Array = pixels * LUMA_WEIGHTS.sum()
    else:
        # Not a matrix product: how a library sums may depend on where in memory a picture lies, and two equal
        # pictures must be equal here, too.
        red, green, blue = (pixels[..., i] * weight for i, weight in enumerate(LUMA_WEIGHTS))
        levels = red + green + blue
    return levels / PEAK + LUMA_BLACK


def psnr_db(first: Array, second: Array) -> float:
    """Return the PSNR of two arrays of one shape, peak 255; infinity where they are equal."""
    mean_square = float(np.mean(np.square(first - second)))
    return 10 * math.log10(PEAK**2 / mean_square) if mean_square else math.inf


def psnr_db_from_mse(mean_squared_error: float, peak: float) -> float:
    """Return 20 log10(peak) - 10 log10(MSE), at most EXACT_DB."""
    if mean_squared_error == 0:
        return EXACT_DB
    return float(min(20 * np.log10(peak) - 10 * np.log10(mean_squared_error), EXACT_DB))


def ssim(first: Array, second: Array, rule: SsimRule = "pyiqa") -> float:
    """Return the SSIM of two (H, W) float64 arrays of unrounded levels, peak 255, sides of at least 11.

    Gaussian window of 11 x 11, sigma 1.5, population variances, mean over the places where the whole window lies
    inside the picture. Source: Wang et al., Image quality assessment: from error visibility to structural
    similarity, 2004, and its published Matlab code, without the downsampling of its later version; the rule "pyiqa":
    as pyiqa computes it.
    """
    if rule == "pyiqa":
        first, second = np.rint(first), np.rint(second)
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    mean_1, mean_2 = _blur_valid(first), _blur_valid(second)
    variance_1 = _blur_valid(first * first) - mean_1 * mean_1
    variance_2 = _blur_valid(second * second) - mean_2 * mean_2
    covariance = _blur_valid(first * second) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1 * mean_1 + mean_2 * mean_2 + c1)
    structure = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
    if rule == "pyiqa":
        structure = np.maximum(structure, 0)
    return float(np.mean(luminance * structure))


def _blur_valid(values: Array) -> Array:
    """(H, W) -> (H - 10, W - 10): SSIM's Gaussian window, one axis after the other."""
    offsets = np.arange(SSIM_WINDOW_PX) - SSIM_WINDOW_PX // 2
    taps = np.exp(-np.square(offsets) / (2 * SSIM_SIGMA_PX**2))
    taps /= taps.sum()
    for axis in (0, 1):
        size = values.shape[axis] - SSIM_WINDOW_PX + 1
        blurred = np.zeros((size, values.shape[1]) if axis == 0 else (values.shape[0], size))
        for start, tap in enumerate(taps):
            blurred += tap * (values[start : start + size] if axis == 0 else values[:, start : start + size])
        values = blurred
    return values


def score_pair(sr_path: Path, hr_path: Path, crop_border_px: int = 0, ssim_rule: SsimRule = "pyiqa") -> Scores:
    """Read, compare, and never resize: raises ImageError where the sizes differ or leave less than SSIM's window.

    crop_border_px: pixels cut off every side of both pictures first.
    """
    sr, hr = (luma_from_pixels(read_pixels(path)) for path in (sr_path, hr_path))
    return score_lumas(sr, hr, sr_path, hr_path, crop_border_px=crop_border_px, ssim_rule=ssim_rule)


def score_lumas(
    sr: Array, hr: Array, sr_path: Path, hr_path: Path, *, crop_border_px: int, ssim_rule: SsimRule
) -> Scores:
    """Compare what `luma_from_pixels` gave of two pictures; the paths are for errors. Raises as `score_pair`."""
    if sr.shape != hr.shape:
        got, expected = (f"{luma.shape[1]}x{luma.shape[0]} pixels" for luma in (sr, hr))
        raise ImageError(sr_path, got, f"{expected}, as {hr_path}", "sizes are never changed to fit")
    if min(sr.shape) - 2 * crop_border_px < SSIM_WINDOW_PX:
        got = f"{sr.shape[1]}x{sr.shape[0]} pixels, {crop_border_px} cut off every side"
        raise ImageError(sr_path, got, f"at least {SSIM_WINDOW_PX} left, the window of SSIM")
    inside = tuple(slice(crop_border_px, side - crop_border_px) for side in sr.shape)
    sr, hr = sr[inside], hr[inside]
    return Scores(sr_path.stem, psnr_db(sr, hr), ssim(sr, hr, ssim_rule))


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Return the arithmetic mean of every number; infinite where one PSNR is. `scores` must not be empty."""
    names = scores[0].perceptual
    return Scores(
        name="mean",
        psnr_y_db=float(np.mean([score.psnr_y_db for score in scores])),
        ssim_y=float(np.mean([score.ssim_y for score in scores])),
        perceptual={name: float(np.mean([score.perceptual[name] for score in scores])) for name in names},
    )


@dataclass(frozen=True, slots=True)
class Pairing:
    """Pictures of two folders that share a name, and the names that only one of them has."""

    # (super-resolved, original), sorted.
    pairs: tuple[tuple[Path, Path], ...]
    only_sr: tuple[str, ...]
    only_hr: tuple[str, ...]


def pair_folders(sr_folder: Path, hr_folder: Path, allow_missing: bool = False) -> Pairing:
    """Pair pictures by exact name without the extension, so that `a.png` finds `a.jpg` but never `a_x4.png`.

    Raises UsageError for a folder without pictures, a name twice in one folder, and, unless `allow_missing`, for a
    picture without its partner.
    """
    sr, hr = _pictures_by_name(sr_folder), _pictures_by_name(hr_folder)
    common, only_sr, only_hr = map(sorted, (sr.keys() & hr.keys(), sr.keys() - hr.keys(), hr.keys() - sr.keys()))
    if not common:
        raise UsageError(sr_folder, f"no picture shares a name with one of {hr_folder}", f"names as {_some(only_hr)}")
    for folder, missing in ((hr_folder, only_sr), (sr_folder, only_hr)):
        if missing and not allow_missing:
            got = f"no picture named {_some(missing)}"
            raise UsageError(folder, got, "both folders alike", "or give --allow-missing")
    return Pairing(tuple((sr[name], hr[name]) for name in common), tuple(only_sr), tuple(only_hr))


def _pictures_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UsageError(folder, "no such folder", "a folder of pictures")
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in pictures:
            raise UsageError(path, f"the same name as {pictures[path.stem].name}", "one picture a name")
        pictures[path.stem] = path
    if not pictures:
        raise UsageError(folder, "no pictures", f"files ending in {', '.join(PICTURE_SUFFIXES)}")
    return pictures


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES_SHOWN
    return ", ".join(names[:_MOST_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def parse_metrics(text: str) -> tuple[str, ...]:
    """Read `lpips,dists`: names of PERCEPTUAL_METRICS; "" for none. Raises UsageError."""
    names = tuple(text.split(",")) if text else ()
    if not set(names) <= set(PERCEPTUAL_METRICS) or len(set(names)) != len(names):
        raise UsageError("--metrics", repr(text), f"one or more of {', '.join(PERCEPTUAL_METRICS)}")
    return names


class PerceptualScorer:
    """pyiqa's metrics by name, on whole pictures. Raises MissingLibraryError where pyiqa is not installed, UsageError
    where it cannot fetch a metric's weights, which it does on first use.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._metrics = {}
        for name in names:
            pyiqa = require("pyiqa", f"--metrics {name}")
            try:
                self._metrics[name] = pyiqa.create_metric(name)
            except OSError as error:
                raise UsageError(f"--metrics {name}", f"cannot load its weights ({error})") from error

    def score(self, sr_path: Path, hr_path: Path) -> dict[str, float]:
        """Full-reference metrics see both pictures, the others the super-resolved one alone."""
        return {
            name: float(metric(str(sr_path), str(hr_path)) if metric.metric_mode == "FR" else metric(str(sr_path)))
            for name, metric in self._metrics.items()
        }
