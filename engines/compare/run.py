"""Methods and settings side by side, each as the engine that would be used, never as a simulation of one.

Every calibration runs in a process of its own, and all of them before anything is compiled: what they report as their
peak of memory is then theirs.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from intsr.arrays import Array
from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import JSON_NAME, load_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.perceptual import perceptual_distance
from intsr.calib.models.open import SRModel, load_model, open_model
from intsr.cli.console import progress, say
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compare.child import CalibrationTask, calibrate_in_child
from intsr.engines.compare.types import BICUBIC, FULL_PRECISION, Comparison, Places, Row, label
from intsr.engines.compile.assemble import compile_engine
from intsr.errors import CalibrationError, ImageError, IntsrError
from intsr.export.pipeline import export_model
from intsr.files import sha256_from_path
from intsr.runtime.batch.files import upscale_file
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.metrics import PerceptualScorer, Scores, mean_scores, psnr_db, score_pair
from intsr.runtime.pictures.reader import list_pictures, read_header, read_image, read_pixels
from intsr.runtime.pictures.writer import write_image
from intsr.runtime.tiles.enlarge import enlarge
from intsr.targets import lowering_from_name
from intsr.types import check_tile

TARGET = "cpu"
_HASH_CHARACTERS = 8
_UINT16_MAX = 65535

Pairs: TypeAlias = Sequence[tuple[Path, Path]]


def run_comparison(job: Comparison, places: Places, scorer: PerceptualScorer) -> tuple[Row, ...]:
    """Compare bicubic, full precision, and then each recipe.

    A recipe that fails becomes a row with its error. Raises ImageError, UsageError, ModelError and what else
    concerns all of them.
    """
    # Without the weights: calibrations need the memory.
    source = open_model(job.model, **job.weights.arguments)
    spec = source.spec
    check_tile(job.tile_px, spec.upscale_factor, spec.size_multiple_px)
    _check_sizes(job.pairs, spec.upscale_factor)
    # Scored at once: a picture that cannot be scored is found before hours of calibrating.
    bicubic, fp = places.pictures / BICUBIC, places.pictures / FULL_PRECISION
    for lr, _ in job.pairs:
        _write_bicubic(lr, bicubic / _output_name(lr), spec.upscale_factor)
    bicubic_scores = _scores(bicubic, job.pairs, scorer)
    calibrations = calibrate_all(job, places.calibrations, source.digest)

    model = load_model(job.model, **job.weights.arguments)
    say("full precision: compiling and upscaling")
    size = _upscale_all(model, None, job, fp, places.scratch)
    exact = _scores(fp, job.pairs, scorer)
    to_fp = _mean_psnr_db(bicubic, fp, job.pairs)
    rows = [
        Row(BICUBIC, "fp", (), bicubic_scores, to_fp, distance_to_fp=_mean_distance(bicubic, fp, job.pairs)),
        Row(FULL_PRECISION, "fp", (), exact, math.inf, distance_to_fp=0.0, engine_bytes=size),
    ]
    for recipe in progress(job.recipes, "comparing"):
        calibrated = calibrations[recipe]
        if isinstance(calibrated, IntsrError):
            # Why it failed was said when it did.
            rows.append(_failed(recipe, calibrated))
            continue
        try:
            row = _row(job, places, scorer, model, calibrated)
            say(f"{label(recipe)}: {row.calibration_s:.1f} s, {row.psnr_to_fp_db:.2f} dB to full precision")
        except IntsrError as error:
            row = _failed(recipe, error)
            say(f"{label(recipe)}: failed: {error}")
        rows.append(row)
    return tuple(
        replace(row, psnr_y_loss_db=exact.psnr_y_db - row.scores.psnr_y_db) if row.scores else row for row in rows
    )


def _check_sizes(pairs: Pairs, factor: int) -> None:
    for lr, hr in pairs:
        small, large = read_header(lr), read_header(hr)
        expected = (small.width_px * factor, small.height_px * factor)
        if (large.width_px, large.height_px) != expected:
            got = f"{large.width_px}x{large.height_px} pixels"
            raise ImageError(hr, got, f"{expected[0]}x{expected[1]}, {factor} times {lr}", "sizes are never changed")


def calibrate_all(job: Comparison, folder: Path, model_digest: str) -> dict[Recipe, Path | IntsrError]:
    """Make a calibration folder below `folder` for every recipe, or say why there is none.

    The name of each carries a hash of everything that decides the result, so that what is there already is used
    again, and what was made differently is neither used nor lost.
    """
    pictures = list_pictures(job.calibration_images)[: job.limit]
    hashes = [sha256_from_path(path) for path in pictures]
    shared = len(set(hashes) & {sha256_from_path(lr) for lr, _ in job.pairs})
    if shared:
        say(f"note: {shared} of the {len(job.pairs)} pictures scored are calibrated on, too")
    made: dict[Recipe, Path | IntsrError] = {}
    for recipe in progress(job.recipes, "calibrating"):
        output = folder / _calibration_name(recipe, model_digest, hashes)
        try:
            if (output / JSON_NAME).is_file() and not job.restart:
                say(f"{label(recipe)}: calibrated before, {output}")
            else:
                say(f"{label(recipe)}: calibrating")
                calibrate_in_child(CalibrationTask(job, recipe, output))
            made[recipe] = output
        except CalibrationError as error:
            made[recipe] = error
            say(f"failed: {error}")
    return made


def _calibration_name(recipe: Recipe, model_digest: str, pictures: Sequence[str]) -> str:
    # Where inputs are kept changes how a result is reached, not the result.
    decisive = replace(recipe, training=replace(recipe.training, cache="ram", recompute=False))
    facts = [version("intsr"), repr(decisive), model_digest, *pictures]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_HASH_CHARACTERS]
    return f"{recipe.method}-{recipe.bits}-{'-'.join(recipe.parts)}-{digest}"


def _row(job: Comparison, places: Places, scorer: PerceptualScorer, model: SRModel, calibrated: Path) -> Row:
    """Compile with a calibration, upscale, and score; what it loses to full precision is left open."""
    calibration = load_calibration(calibrated)
    pictures = places.pictures / calibrated.name
    engine_bytes, fp = (
        _upscale_all(model, calibration, job, pictures, places.scratch),
        places.pictures / FULL_PRECISION,
    )
    return Row(
        calibration.method,
        str(calibration.bits),
        calibration.parts,
        scores=_scores(pictures, job.pairs, scorer),
        psnr_to_fp_db=_mean_psnr_db(pictures, fp, job.pairs),
        distance_to_fp=_mean_distance(pictures, fp, job.pairs),
        engine_bytes=engine_bytes,
        calibration_s=calibration.seconds,
        peak_bytes=calibration.peak_bytes,
    )


def _failed(recipe: Recipe, error: IntsrError) -> Row:
    return Row(recipe.method, str(recipe.bits), recipe.parts, error=str(error))


def _upscale_all(
    model: SRModel, calibration: Calibration | None, job: Comparison, pictures: Path, scratch: Path
) -> int:
    """Compile for the CPU and upscale every low-resolution picture; the engine is not kept. Returns its bytes."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        exported, path = Path(folder) / "onnx", Path(folder) / "compared.engine"
        export_model(model, calibration, lowering_from_name(TARGET), job.tile_px, exported)
        compile_engine(exported, path, BuildOptions(TARGET, detailed=False))
        with open_engine(path, precision=job.precision) as engine:
            for lr, _ in job.pairs:
                upscale_file(engine, Job(lr, pictures / _output_name(lr)), FileOptions(color_fix=job.color_fix))
        return path.stat().st_size


def _write_bicubic(source: Path, output: Path, factor: int) -> None:
    loaded = read_image(source)
    alpha = None if loaded.alpha is None else _whole_numbers(enlarge(loaded.alpha, factor, "lanczos"))
    write_image(output, _whole_numbers(enlarge(loaded.pixels, factor, "bicubic")), alpha, loaded.metadata)


def _whole_numbers(values: Array) -> Array:
    """uint8 as it is; float32 in [0, 1] -> uint16."""
    return values if values.dtype == np.uint8 else np.rint(values * _UINT16_MAX).astype(np.uint16)


def _output_name(lr: Path) -> str:
    return f"{lr.stem}.png"


def _scores(pictures: Path, pairs: Pairs, scorer: PerceptualScorer) -> Scores:
    """Means over all pictures. Raises ImageError."""
    scores = []
    for lr, hr in pairs:
        sr = pictures / _output_name(lr)
        scores.append(replace(score_pair(sr, hr), perceptual=scorer.score(sr, hr)))
    return mean_scores(scores)


def _mean_psnr_db(pictures: Path, others: Path, pairs: Pairs) -> float:
    names = [_output_name(lr) for lr, _ in pairs]
    return float(np.mean([psnr_db(read_pixels(pictures / name), read_pixels(others / name)) for name in names]))


def _mean_distance(pictures: Path, fp: Path, pairs: Pairs) -> float:
    names = [_output_name(lr) for lr, _ in pairs]
    tensors = [[_tensor(folder / name) for name in names] for folder in (pictures, fp)]
    return float(np.mean([float(perceptual_distance(a, b)) for a, b in zip(*tensors, strict=True)]))


def _tensor(path: Path) -> torch.Tensor:
    pixels = torch.from_numpy(read_pixels(path)[..., :3].astype(np.float32))
    return pixels.permute(2, 0, 1)[None] / 127.5 - 1
