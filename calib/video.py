"""Calibrate a video model over clips, in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from intsr.calib.calibration.types import Calibration
from intsr.calib.data.clips import calibration_clips
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.video import VideoModel
from intsr.calib.observe.video import observe_video
from intsr.memory import peak_resident_bytes
from intsr.types import Bits, check_tile

METHOD = "maxmin"
# Of a clip: a first latent, which stands alone, and two that remember it.
CLIP_FRAMES = 9


def calibrate_video(
    model: VideoModel,
    clips: Sequence[Path],
    bits: Bits,
    tile_px: int,
    *,
    progress: Callable[[Iterable[torch.Tensor]], Iterable[torch.Tensor]] = lambda batches: batches,
) -> Calibration:
    """Run MaxMin over films, numbered pictures and pictures. Raises ImageError, UsageError, CalibrationError."""
    check_tile(tile_px, model.spec.upscale_factor, model.spec.size_multiple_px)
    start = time.perf_counter()
    batches = calibration_clips(clips, model.spec, tile_px, CLIP_FRAMES)
    sites = observe_video(model, progress(batches), bits, VIDEO_PARTS)
    return Calibration(
        method=METHOD,
        bits=bits,
        parts=VIDEO_PARTS,
        model=model.spec.name,
        model_digest=model.digest,
        pictures=len(clips),
        tile_px=tile_px,
        seconds=round(time.perf_counter() - start, 3),
        peak_bytes=peak_resident_bytes(),
        sites=sites,
    )
