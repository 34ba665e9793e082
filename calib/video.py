"""Calibrate a video model over clips: one plain function from model and clips to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from intsr.calib.calibrate import Progress, Recipe, identity_of_run
from intsr.calib.calibration.types import Calibration
from intsr.calib.data.clips import calibration_clips, crops_from_clips, guard_clips
from intsr.calib.data.pictures import guard_side_px
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.stages import Run
from intsr.calib.learn.train import Report
from intsr.calib.learn.video import latent_crops, learn_video
from intsr.calib.models.video import VideoModel
from intsr.calib.observe.video import observe_video
from intsr.files import sha256_from_path
from intsr.memory import peak_resident_bytes
from intsr.runtime.films.names import is_sequence, numbered_pictures
from intsr.types import check_tile

# Of a clip: a first latent, which stands alone, and two that remember it.
CLIP_FRAMES = 9
# Crops that the VAE's ranges are taken of beside a transformer that is learned: the mean over them settles early.
VAE_CROPS = 16


def calibrate_video(
    model: VideoModel,
    clips: Sequence[Path],
    recipe: Recipe,
    *,
    progress: Progress = lambda batches: batches,
    report: Report = lambda phase, steps, loss: None,
    work: Path | None = None,
) -> Calibration:
    """Run the recipe's method over films, numbered pictures and pictures; the rest as of `calibrate`.

    The VAE gets MaxMin's ranges of 8 bits, whatever the method. Raises ImageError, UsageError, CalibrationError.
    """
    spec = model.spec
    check_tile(recipe.tile_px, spec.upscale_factor, spec.size_multiple_px)
    identity = identity_of_run(model, [_fact(path) for path in clips], recipe) if recipe.trains else {}
    learned: Mapping[str, Any] = {}
    with closing(Journal(work if recipe.trains else None, identity)) as journal:
        if recipe.trains:
            run, seen, guard = run_of_recipe(model, clips, recipe, journal, report)
            result = learn_video(model, recipe.bits, run, recipe.device)
            sites = {site: layer.site_quantizer() for site, layer in result.layers.items()}
            if "vae" in recipe.parts:
                sites |= observe_video(model, seen, recipe.bits, ("vae",), guard)
            learned = {"curves": result.curves, "sensitivity": result.sensitivity}
        else:
            batches = progress(calibration_clips(clips, spec, recipe.tile_px, CLIP_FRAMES))
            side_px = guard_side_px(spec, recipe.tile_px)
            guard = tuple(guard_clips(spec, side_px, CLIP_FRAMES, recipe.seed)) if recipe.guard else ()
            observe = recipe.stages.observe_video
            assert observe is not None
            sites = observe(model, batches, recipe.bits, recipe.parts, guard)
    return Calibration(
        method=recipe.method,
        bits=recipe.bits,
        parts=recipe.parts,
        model=spec.name,
        model_digest=model.digest,
        pictures=len(clips),
        tile_px=recipe.tile_px,
        seconds=round(journal.seconds, 3),
        peak_bytes=peak_resident_bytes(),
        sites=sites,
        **learned,
    )


def _fact(clip: Path) -> str:
    """What tells a clip from another: its bytes; of numbered pictures, those of the ones that are looked at."""
    seen = list(numbered_pictures(clip).values())[:CLIP_FRAMES] if is_sequence(clip) else [clip]
    return " ".join(map(sha256_from_path, seen))


def run_of_recipe(
    model: VideoModel, clips: Sequence[Path], recipe: Recipe, journal: Journal, report: Report
) -> tuple[Run, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """What training of the transformer takes, and clips and the guard's for the VAE's ranges.

    Raises UsageError, ImageError.
    """
    guard = guard_clips(model.spec, recipe.crop_px, CLIP_FRAMES, recipe.seed) if recipe.guard else ()
    crops = crops_from_clips(
        clips,
        model.spec,
        crop_px=recipe.crop_px,
        count=recipe.crops,
        batch=recipe.training.batch,
        frames=CLIP_FRAMES,
        guard=guard,
    )
    run = Run(recipe.stages, recipe.training, recipe.seed, journal, report, latent_crops(model, crops))
    return run, crops.train[:: -(-len(crops.train) // VAE_CROPS)], crops.guard


def steps_of_video_recipe(model: VideoModel, recipe: Recipe) -> int:
    """Training steps in all, for a progress bar; 0 for methods that do not train."""
    of_block, of_one, _ = recipe.steps
    return len(model.transformer.blocks) * of_block + of_one if recipe.trains else 0
