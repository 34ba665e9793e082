"""A film against its original: PSNR, SSIM and flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from intsr.errors import ImageError
from intsr.runtime.films.header import open_source
from intsr.runtime.films.types import FilmOptions, Frame
from intsr.runtime.measure.flicker import FlickerMeter
from intsr.runtime.measure.metrics import PEAK, Scores, SsimRule, luma_from_pixels, mean_scores, score_lumas


@dataclass(frozen=True, slots=True)
class FilmComparison:
    """Means over the frames. flicker: of `FlickerMeter`; None where the original never stands still."""

    frames: int
    psnr_y_db: float
    ssim_y: float
    flicker: float | None


def compare_films(
    sr_path: Path,
    hr_path: Path,
    crop_border_px: int = 0,
    ssim_rule: SsimRule = "pyiqa",
    show: Callable[[Iterator[Frame], int | None], Iterator[Frame]] = lambda frames, total: frames,
) -> FilmComparison:
    """Compare frame by frame, in order. show: wraps the iteration over frames, of which there are about so many.

    Raises ImageError: no film, another size, another number of frames, one that cannot be read to its end.
    """
    scores: list[Scores] = []
    meter = FlickerMeter()
    with open_source(sr_path, FilmOptions()) as sr, open_source(hr_path, FilmOptions()) as hr:
        pairs = zip_longest(show(sr.frames(), sr.facts.frames), hr.frames())
        for sr_frame, hr_frame in pairs:
            if sr_frame is None or hr_frame is None:
                longer, shorter = (sr_path, hr_path) if hr_frame is None else (hr_path, sr_path)
                got = f"has more frames than {shorter}, which has {len(scores)}"
                raise ImageError(longer, got, "two films of the same frames")
            sr_luma, hr_luma = (luma_from_pixels(_levels(frame)) for frame in (sr_frame, hr_frame))
            paths = sr_path, hr_path
            scores.append(score_lumas(sr_luma, hr_luma, *paths, crop_border_px=crop_border_px, ssim_rule=ssim_rule))
            meter.add(hr_frame.pixels, sr_frame.pixels)
        for path, source in ((sr_path, sr), (hr_path, hr)):
            if source.problem:
                raise ImageError(path, source.problem, "a whole film")
    mean = mean_scores(scores)
    return FilmComparison(len(scores), mean.psnr_y_db, mean.ssim_y, meter.flicker)


def _levels(frame: Frame) -> np.ndarray:
    """(H, W, 3) float64 in [0, 255]."""
    return frame.pixels.astype(np.float64) * (PEAK / np.iinfo(frame.pixels.dtype).max)
