"""Methods and settings side by side, each as the engine that would be used, never as a simulation of one.

Every calibration runs in a process of its own, and all of them before anything is compiled: they then have the memory
to themselves, what they report as their peak is theirs, and one that crashes costs a row, not the table.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import intsr
from intsr.arrays import Array
from intsr.calib.calibration import JSON_NAME, Calibration, load_calibration
from intsr.calib.data.pictures import list_pictures
from intsr.calib.models.open import SRModel, load_model, open_model
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compare.types import BICUBIC, FULL_PRECISION, Comparison, Places, Row, Setting
from intsr.engines.compile.assemble import compile_engine
from intsr.errors import CalibrationError, ImageError, IntsrError
from intsr.export.graphs import check_tile
from intsr.export.pipeline import export_model
from intsr.files import sha256_from_path
from intsr.runtime.batch.files import upscale_file
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.metrics import PerceptualScorer, Scores, mean_scores, psnr_db, score_pair
from intsr.runtime.pictures.reader import read_header, read_image
from intsr.runtime.pictures.rgb8 import read_pixels
from intsr.runtime.pictures.writer import write_image
from intsr.runtime.tiles.enlarge import enlarge
from intsr.targets import target_from_name
from intsr.targets.lowering import lowering_from_name
from intsr.types import ModelSpec

TARGET = "cpu"
# Options of calibrate that change how a result is reached, not the result.
WITHOUT_EFFECT_ON_RESULT = ("--cache", "--recompute")
_HASH_CHARACTERS = 8
_UINT16_MAX = 65535
_GRACE_S = 10.0

Pairs: TypeAlias = Sequence[tuple[Path, Path]]
Say: TypeAlias = Callable[[str], None]
Watch: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]


def run_comparison(
    job: Comparison, places: Places, scorer: PerceptualScorer, say: Say, watch: Watch
) -> tuple[Row, ...]:
    """Bicubic, full precision, then a row a setting. watch: wraps a sequence, to show how far it got.

    A setting that fails becomes a row with its error. Raises ImageError, UsageError, ModelError and what else
    concerns all of them.
    """
    spec, digest = _model_facts(job)
    check_tile(job.tile_px, spec.upscale_factor, spec.size_multiple_px)
    _check_sizes(job.pairs, spec.upscale_factor)
    # Scored at once: a picture that cannot be scored is found before hours of calibrating.
    bicubic, fp = places.pictures / BICUBIC, places.pictures / FULL_PRECISION
    for lr, _ in job.pairs:
        _write_bicubic(lr, bicubic / _output_name(lr), spec.upscale_factor)
    bicubic_scores = _scores(bicubic, job.pairs, scorer)
    calibrations = calibrate_settings(job, places.calibrations, digest, say, watch)

    model = load_model(job.model, job.context, job.lora)
    say("full precision: compiling and upscaling")
    _upscale_all(model, None, job, fp, places.scratch)
    exact = _scores(fp, job.pairs, scorer)
    first = Row(BICUBIC, "fp", (), bicubic_scores, _mean_psnr_db(bicubic, fp, job.pairs))
    rows = [
        replace(first, psnr_y_loss_db=exact.psnr_y_db - bicubic_scores.psnr_y_db),
        Row(FULL_PRECISION, "fp", (), exact, math.inf, 0.0),
    ]
    for setting in watch(job.settings, "comparing"):
        row = _row(model, setting, calibrations[setting], exact, job, places, scorer)
        # Why a calibration failed was said when it did.
        if not isinstance(calibrations[setting], IntsrError):
            say(_line(setting, row))
        rows.append(row)
    return tuple(rows)


def _line(setting: Setting, row: Row) -> str:
    if row.error is not None:
        return f"{setting}: failed: {row.error}"
    return f"{setting}: {row.calibration_s:.1f} s, {row.psnr_to_fp_db:.2f} dB to full precision"


def _model_facts(job: Comparison) -> tuple[ModelSpec, str]:
    """Its spec and digest, without its weights: calibrations need the memory."""
    source = open_model(job.model, job.context, job.lora)
    return source.spec, source.digest


def _check_sizes(pairs: Pairs, factor: int) -> None:
    for lr, hr in pairs:
        small, large = read_header(lr), read_header(hr)
        expected = (small.width_px * factor, small.height_px * factor)
        if (large.width_px, large.height_px) != expected:
            got = f"{large.width_px}x{large.height_px} pixels"
            raise ImageError(hr, got, f"{expected[0]}x{expected[1]}, {factor} times {lr}", "sizes are never changed")


def calibrate_settings(
    job: Comparison, folder: Path, model_digest: str, say: Say, watch: Watch
) -> dict[Setting, Path | IntsrError]:
    """A calibration folder below `folder` for every setting, or why there is none.

    The name of each carries a hash of everything that decides the result, so that what is there already is used
    again, and what was made differently is neither used nor lost.
    """
    pictures = list_pictures(job.calibration_images)[: job.limit]
    hashes = [sha256_from_path(path) for path in pictures]
    shared = len(set(hashes) & {sha256_from_path(lr) for lr, _ in job.pairs})
    if shared:
        say(f"note: {shared} of the {len(job.pairs)} pictures scored are calibrated on, too")
    made: dict[Setting, Path | IntsrError] = {}
    for setting in watch(job.settings, "calibrating"):
        output = folder / _calibration_name(job, setting, model_digest, hashes)
        try:
            if (output / JSON_NAME).is_file() and not job.restart:
                say(f"{setting}: calibrated before, {output}")
            else:
                say(f"{setting}: calibrating")
                _calibrate(job, setting, output)
            made[setting] = output
        except CalibrationError as error:
            made[setting] = error
            say(f"failed: {error}")
    return made


def _calibration_name(job: Comparison, setting: Setting, model_digest: str, pictures: Sequence[str]) -> str:
    options = {key: v for key, v in job.options_of(setting).items() if key not in WITHOUT_EFFECT_ON_RESULT}
    facts = [intsr.__version__, str(setting), job.tile_px, sorted(options.items()), model_digest, *pictures]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_HASH_CHARACTERS]
    return f"{setting.method}-{setting.bits}-{'-'.join(setting.parts)}-{digest}"


def _calibrate(job: Comparison, setting: Setting, output: Path) -> None:
    """`intsr calibrate` in a child; what it says goes into a log beside `output`. Raises CalibrationError."""
    arguments = [job.model, "--images", job.calibration_images, "-o", output, "--tile", job.tile_px, "-v"]
    arguments += ["--method", setting.method, "--bits", setting.bits, "--parts", ",".join(setting.parts)]
    arguments += ["--limit", job.limit] if job.limit is not None else []
    arguments += ["--context", job.context] if job.context is not None else []
    arguments += ["--lora", job.lora] if job.lora is not None else []
    arguments += ["--restart"] if job.restart and setting.trains else []
    for name, value in job.options_of(setting).items():
        arguments += [name] if value is None else [name, value]
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_name(f"{output.name}.log")
    exit_code = _run_child([sys.executable, "-m", "intsr", "calibrate", *map(str, arguments)], log)
    if exit_code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise CalibrationError(f"calibrating {setting}", _reason(exit_code, lines))


def _run_child(command: Sequence[str], log: Path) -> int:
    """The exit code, negative for a signal. Any exception here, Ctrl-C too, ends the child."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            return child.wait()
        except BaseException as error:
            # Not killed at once: it removes its temporary files. Ctrl-C in a terminal has reached it already.
            if not isinstance(error, KeyboardInterrupt):
                child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
            child.kill()
            child.wait()
            raise


def _reason(exit_code: int, lines: Sequence[str]) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed (SIGKILL), most likely for want of memory"
    if exit_code < 0:
        return f"crashed ({signal.Signals(-exit_code).name})"
    last = lines[-1].removeprefix("intsr: error: ") if lines else ""
    return last or f"ended with code {exit_code}"


def _row(
    model: SRModel,
    setting: Setting,
    calibrated: Path | IntsrError,
    exact: Scores,
    job: Comparison,
    places: Places,
    scorer: PerceptualScorer,
) -> Row:
    row = Row(setting.method, str(setting.bits), setting.parts)
    try:
        if isinstance(calibrated, IntsrError):
            raise calibrated
        calibration = load_calibration(calibrated)
        pictures = places.pictures / calibrated.name
        _upscale_all(model, calibration, job, pictures, places.scratch)
        scores = _scores(pictures, job.pairs, scorer)
    except IntsrError as error:
        return replace(row, error=str(error))
    return replace(
        row,
        scores=scores,
        psnr_to_fp_db=_mean_psnr_db(pictures, places.pictures / FULL_PRECISION, job.pairs),
        psnr_y_loss_db=exact.psnr_y_db - scores.psnr_y_db,
        calibration_s=calibration.seconds,
        peak_bytes=calibration.peak_bytes,
    )


def _upscale_all(
    model: SRModel, calibration: Calibration | None, job: Comparison, pictures: Path, scratch: Path
) -> None:
    """Compile for the CPU and upscale every low-resolution picture; the engine is not kept."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        exported, path = Path(folder) / "onnx", Path(folder) / "compared.engine"
        export_model(model, calibration, lowering_from_name(target_from_name(TARGET).lowering), job.tile_px, exported)
        compile_engine(exported, path, BuildOptions(TARGET, detailed=False))
        with open_engine(path, precision=job.precision) as engine:
            for lr, _ in job.pairs:
                upscale_file(engine, Job(lr, pictures / _output_name(lr)), FileOptions(color_fix=job.color_fix))


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
