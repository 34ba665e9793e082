"""The whole way on real pictures with the bundled model: calibrate, export, compile, upscale, report.

The photograph that is upscaled (scikit-image's `astronaut`, public domain) and the ones that ranges are taken from
were not trained on, but for two of the latter.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from intsr.bundle import read_manifest
from intsr.calib.calibrate import Recipe, calibrate
from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.models.open import SRModel, load_model
from intsr.cli.console import Stopwatch
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.errors import MissingLibraryError, VerificationError
from intsr.export.pipeline import export_model
from intsr.files import atomic_path
from intsr.optional import require
from intsr.runtime.engine import open_engine
from intsr.runtime.measure import benchmark
from intsr.runtime.measure.machine import environment
from intsr.runtime.measure.metrics import luma_from_pixels, psnr_db
from intsr.targets import lowering_from_name, target_from_name
from intsr.types import Bits

PICTURE = "astronaut"
CALIBRATION_PICTURES = ("chelsea", "coffee", "rocket")
# The second takes two tiles.
REPORT_PICTURES = ("astronaut", "coffee")
REPORT_NAME = "report.html"
TILE_PX = 128
# An eighth of what `intsr calibrate` does by default: enough to show the way in a minute or two.
METHOD, CROPS, EFFORT = "passionsr", 8, TrainingOptions(block_steps=4, joint_steps=24)
MIN_RUNS, MIN_SECONDS = 6, 3.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoPictures:
    """original: high resolution. lr: its antialiased bicubic reduction. calibration: low-resolution files."""

    original: Image.Image
    lr: Image.Image
    calibration: tuple[Path, ...]


def run_demo(output: Path, say: Say, bits: str = "w8a8") -> dict[str, Any]:
    """Fill `output` with pictures, engines, `report.html` and `summary.json`; returns the summary.

    Raises whatever a stage raises, and VerificationError where the integer picture is no better than bicubic.
    """
    watch = Stopwatch()
    say("loading the bundled model")
    model = load_model("demo")
    pictures = make_pictures(output, model.spec.upscale_factor)
    say(f"calibrating on {len(pictures.calibration)} photographs ({METHOD}, {bits}, a short run)")
    recipe = Recipe(METHOD, Bits.parse(bits), tile_px=TILE_PX, crops=CROPS, training=EFFORT)
    calibration = calibrate(model, pictures.calibration, recipe)
    save_calibration(calibration, output / f"calibration-{bits}")
    say("compiling three engines: fp32 and int8 for the CPU, int8 for tensorrt-rtx")
    engines = {
        "fp32": _compile(model, None, "cpu", output / "demo-fp32.cpu.engine", precision="f32"),
        "int8": _compile(model, calibration, "cpu", output / f"demo-{bits}.cpu.engine"),
        "rtx": _compile(model, calibration, "tensorrt-rtx", output / f"demo-{bits}.rtx.engine"),
    }
    bicubic = pictures.lr.resize(pictures.original.size, Image.Resampling.BICUBIC)
    _save(bicubic, output / "bicubic.png")
    summary: dict[str, Any] = {"psnr_bicubic_db": _psnr_y_db(bicubic, pictures.original)}
    for kind in ("fp32", "int8"):
        say(f"upscaling with the {kind} engine")
        for color_fix in ("wavelet", "none"):
            with open_engine(engines[kind]) as engine:
                picture = engine.upscale(pictures.lr, color_fix=color_fix)
            suffix = "" if color_fix == "wavelet" else "_no_color_fix"
            summary[f"psnr_{kind}{suffix}_db"] = _psnr_y_db(picture, pictures.original)
            if color_fix == "wavelet":
                _save(picture, output / f"sr_{kind}.png")
    say("timing torch fp32, the fp32 engine and the int8 engine, in turn")
    measured = _measure(engines["int8"], engines["fp32"])
    names = ("cpu_int8_ms", "cpu_fp32_ms", "torch_fp32_ms")
    summary |= {name: round(item.median_ms, 2) for name, item in zip(names, measured, strict=True)}
    facts = _write_report(output, output / f"calibration-{bits}", engines, measured, say)
    summary["report"] = REPORT_NAME if facts else None
    if facts:
        (smooth,) = facts["pictures"]["smooth_tiles"]
        summary["worst_smooth_tile"] = min(smooth["tiles"], key=lambda tile: tile["psnr_db"])
    summary |= {
        "engine_bytes": engines["int8"].stat().st_size,
        "rtx_engine_bytes": engines["rtx"].stat().st_size,
        "seconds": round(watch.seconds, 1),
        "picture": PICTURE,
        "bits": bits,
    }
    with atomic_path(output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    if summary["psnr_int8_db"] <= summary["psnr_bicubic_db"]:
        raise VerificationError(output / "summary.json", f"int8 {summary['psnr_int8_db']} dB", "more than bicubic")
    return summary


def _measure(int8: Path, fp32: Path) -> list[benchmark.Measurement]:
    """Time both engines and torch on a 128x128 picture end to end, with the same threads, in turn."""
    threads = benchmark.default_threads()
    with ExitStack() as opened:
        entries = [benchmark.entry_from_engine(path, threads=threads) for path in (int8, fp32)]
        entries.append(benchmark.entry_from_reference("demo", TILE_PX, threads))
        for entry in entries:
            opened.callback(entry.upscaler.close)
        return benchmark.measure(entries, benchmark.bench_picture(TILE_PX), MIN_RUNS, MIN_SECONDS)


def _write_report(
    output: Path,
    calibration: Path,
    engines: Mapping[str, Path],
    measured: Sequence[benchmark.Measurement],
    say: Say,
) -> dict[str, Any] | None:
    """Write `report.html`; return what it says, or None, said in words, where what draws it is not installed."""
    from intsr.engines.report.build import build_report, check_libraries
    from intsr.engines.report.measure.request import ReportRequest

    try:
        check_libraries()
    except MissingLibraryError as error:
        say(f"no report.html: {error}")
        return None
    around = environment(benchmark.default_threads(), TILE_PX)
    with tempfile.TemporaryDirectory(prefix="intsr-demo-") as folder:
        lr, hr = Path(folder) / "lr", Path(folder) / "hr"
        _save_pairs(lr, hr, read_manifest(engines["int8"]).upscale_factor)
        request = ReportRequest(
            calibration=calibration,
            engines=(engines["int8"], engines["fp32"]),
            images=lr,
            hr=hr,
            calibration_images=output / "calibration-pictures",
            model="demo",
            layer_pictures=2,
            bench=(
                {
                    "engines": [item.to_json() for item in measured],
                    "environment": around,
                    "warnings": benchmark.warnings_from_measurements(measured),
                },
            ),
        )
        return build_report(request, output / REPORT_NAME, say)


def _save_pairs(lr: Path, hr: Path, factor: int) -> None:
    data = require("skimage.data", "the demonstration's photographs")
    for name in REPORT_PICTURES:
        photograph = _photograph(data, name, factor)
        _save(photograph, hr / f"{name}.png")
        _save(_reduced(photograph, factor), lr / f"{name}.png")


def make_pictures(output: Path, upscale_factor: int) -> DemoPictures:
    """Reduce scikit-image's photographs and write the low-resolution files below `output`."""
    data = require("skimage.data", "the demonstration's photographs")
    original = _photograph(data, PICTURE, upscale_factor)
    lr = _reduced(original, upscale_factor)
    _save(lr, output / "lr.png")
    _save(original, output / "original.png")
    paths = []
    for name in CALIBRATION_PICTURES:
        path = output / "calibration-pictures" / f"{name}.png"
        _save(_reduced(_photograph(data, name, upscale_factor), upscale_factor), path)
        paths.append(path)
    return DemoPictures(original, lr, tuple(paths))


def _photograph(data: Any, name: str, multiple_px: int) -> Image.Image:
    picture = Image.fromarray(getattr(data, name)()).convert("RGB")
    return picture.crop(
        (0, 0, picture.width // multiple_px * multiple_px, picture.height // multiple_px * multiple_px)
    )


def _reduced(picture: Image.Image, factor: int) -> Image.Image:
    return picture.resize((picture.width // factor, picture.height // factor), Image.Resampling.BICUBIC)


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _psnr_y_db(picture: Image.Image, original: Image.Image) -> float:
    import numpy as np

    luma = [luma_from_pixels(np.asarray(image)) for image in (picture, original)]
    return round(psnr_db(luma[0], luma[1]), 4)


def _compile(
    model: SRModel, calibration: Calibration | None, target: str, output: Path, precision: str | None = None
) -> Path:
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        exported = Path(folder) / "onnx"
        first, *further = target_from_name(target).tiles
        lowering = lowering_from_name(target_from_name(target).lowering)
        export_model(model, calibration, lowering, first, exported, further_tiles=further)
        compile_engine(exported, output, BuildOptions(target=target), precision=precision)
    return output
