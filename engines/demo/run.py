"""The whole way on real pictures with the bundled model: calibrate, export, compile, upscale, report.

The photograph that is upscaled (scikit-image's `astronaut`, public domain) and the ones that ranges are taken from
were not trained on, but for two of the latter.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intsr.arrays import Array
from intsr.calib.calibrate import Recipe, calibrate
from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.models.open import SRModel, load_model
from intsr.cli.console import Stopwatch, say
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.errors import MissingLibraryError, VerificationError
from intsr.export.pipeline import export_model
from intsr.files import atomic_path
from intsr.optional import require
from intsr.runtime.engine import open_engine
from intsr.runtime.measure import benchmark
from intsr.runtime.measure.machine import environment
from intsr.runtime.measure.measurement import Measurement, warnings_from_measurements
from intsr.runtime.measure.metrics import luma_from_pixels, psnr_db
from intsr.targets import lowering_from_name, target_from_name
from intsr.types import Bits

PICTURE = "astronaut"
CALIBRATION_PICTURES = ("chelsea", "coffee", "rocket")
# The second takes two tiles.
REPORT_PICTURES = ("astronaut", "coffee")
REPORT_NAME = "report.html"
TILE_PX = 128
# A small part of what `intsr calibrate` does by default: enough to show the way in a minute or two.
METHOD, CROPS, EFFORT = "passionsr", 6, TrainingOptions(block_steps=1, joint_steps=8)
# Of one pass; in W8A8 worth as much (docs/measure/methods.md).
FAST_METHOD = "maxmin+let"
BITS = "w8a8"
MIN_RUNS, MIN_SECONDS = 6, 3.0


def run_demo(output: Path) -> dict[str, Any]:
    """Fill `output` with pictures, engines, `report.html` and `summary.json`; returns the summary.

    Raises whatever a stage raises, and VerificationError where the integer picture is no better than bicubic.
    """
    watch = Stopwatch()
    recipe = Recipe(METHOD, Bits.parse(BITS), tile_px=TILE_PX, crops=CROPS, training=EFFORT)
    model, calibration = _calibrated(output / "calibration-pictures", recipe)
    factor = model.spec.upscale_factor
    lr, original = saved_pair(PICTURE, factor, output / "lr.png", output / "original.png")
    folder = output / f"calibration-{BITS}"
    save_calibration(calibration, folder)
    say("compiling three engines: fp32 and int8 for the CPU, int8 for tensorrt-rtx")
    engines = {
        "fp32": compile_demo(model, None, "cpu", output / "demo-fp32.cpu.engine", precision="f32"),
        "int8": compile_demo(model, calibration, "cpu", output / f"demo-{BITS}.cpu.engine"),
        "rtx": compile_demo(model, calibration, "tensorrt-rtx", output / f"demo-{BITS}.rtx.engine"),
    }
    bicubic = lr.resize(original.size, Image.Resampling.BICUBIC)
    save_png(bicubic, output / "bicubic.png")
    summary: dict[str, Any] = {"psnr_bicubic_db": psnr_y_db(bicubic, original)}
    for kind in ("fp32", "int8"):
        say(f"upscaling with the {kind} engine")
        with open_engine(engines[kind]) as engine:
            picture, plain = (engine.upscale(lr, color_fix=name) for name in ("wavelet", "none"))
        summary[f"psnr_{kind}_db"] = psnr_y_db(picture, original)
        summary[f"psnr_{kind}_no_color_fix_db"] = psnr_y_db(plain, original)
        save_png(picture, output / f"sr_{kind}.png")
    say("timing torch fp32, the fp32 engine and the int8 engine, in turn")
    measured = _measure(engines["int8"], engines["fp32"])
    names = ("cpu_int8_ms", "cpu_fp32_ms", "torch_fp32_ms")
    summary |= {name: round(item.median_ms, 2) for name, item in zip(names, measured, strict=True)}
    facts = _write_report(output, folder, engines, measured, factor)
    summary["report"] = REPORT_NAME if facts else None
    if facts:
        (smooth,) = facts["pictures"]["smooth_tiles"]
        summary["worst_smooth_tile"] = min(smooth["tiles"], key=lambda tile: tile["psnr_db"])
    summary |= {
        "engine_bytes": engines["int8"].stat().st_size,
        "rtx_engine_bytes": engines["rtx"].stat().st_size,
        "seconds": round(watch.seconds, 1),
        "picture": PICTURE,
        "bits": BITS,
    }
    keep_summary(summary, output / "summary.json")
    return summary


def engine_alone(output: Path) -> None:
    """Write an integer engine for the CPU, and nothing else, as fast as can be. Raises what a stage raises."""
    with tempfile.TemporaryDirectory(prefix="intsr-demo-") as folder:
        model, calibration = _calibrated(Path(folder), Recipe(FAST_METHOD, Bits.parse(BITS), tile_px=TILE_PX))
    say("compiling the engine")
    compile_demo(model, calibration, "cpu", output)


def _calibrated(pictures: Path, recipe: Recipe) -> tuple[SRModel, Calibration]:
    """The model, and its calibration on photographs that are written into this folder."""
    say("loading the bundled model")
    model = load_model("demo")
    seen = [pictures / f"{name}.png" for name in CALIBRATION_PICTURES]
    for path in seen:
        saved_pair(path.stem, model.spec.upscale_factor, path)
    say(f"calibrating on {len(seen)} photographs ({recipe.method}, {BITS})")
    return model, calibrate(model, seen, recipe)


def keep_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write it. Raises VerificationError where what the integer engine made is no better than bicubic."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    if summary["psnr_int8_db"] <= summary["psnr_bicubic_db"]:
        raise VerificationError(path, f"int8 {summary['psnr_int8_db']} dB", "more than bicubic")


def _measure(int8: Path, fp32: Path) -> list[Measurement]:
    """Time both engines and torch on a 128x128 picture end to end, with the same threads, in turn."""
    threads = benchmark.default_threads()
    with ExitStack() as opened:
        entries = [benchmark.entry_from_engine(path, threads=threads) for path in (int8, fp32)]
        entries.append(benchmark.entry_from_reference("demo", TILE_PX, threads))
        for entry in entries:
            opened.callback(entry.upscaler.close)
        return benchmark.measure(entries, benchmark.bench_picture(TILE_PX, TILE_PX), MIN_RUNS, MIN_SECONDS)


def _write_report(
    output: Path,
    calibration: Path,
    engines: Mapping[str, Path],
    measured: Sequence[Measurement],
    factor: int,
) -> dict[str, Any] | None:
    """Write `report.html`; return what it says, or None, said in words, where what draws it is not installed."""
    from intsr.engines.report.build import build_report, check_libraries
    from intsr.engines.report.measure.request import ReportRequest

    try:
        check_libraries()
    except MissingLibraryError as error:
        say(f"no report.html: {error}")
        return None
    around = environment(benchmark.default_threads(), (TILE_PX, TILE_PX))
    with tempfile.TemporaryDirectory(prefix="intsr-demo-") as folder:
        lr, hr = Path(folder) / "lr", Path(folder) / "hr"
        for name in REPORT_PICTURES:
            saved_pair(name, factor, lr / f"{name}.png", hr / f"{name}.png")
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
                    "warnings": warnings_from_measurements(measured),
                },
            ),
        )
        return build_report(request, output / REPORT_NAME)


def saved_pair(name: str, factor: int, *paths: Path) -> tuple[Image.Image, Image.Image]:
    """A photograph of scikit-image's `factor` times smaller, and itself, written to as many paths as are given."""
    data = require("skimage.data", "the demonstration's photographs")
    whole = Image.fromarray(getattr(data, name)()).convert("RGB")
    width, height = whole.width // factor, whole.height // factor
    original = whole.crop((0, 0, width * factor, height * factor))
    pair = original.resize((width, height), Image.Resampling.BICUBIC), original
    for picture, path in zip(pair, paths, strict=False):
        save_png(picture, path)
    return pair


def save_png(picture: Image.Image, path: Path) -> None:
    """In one piece."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def psnr_y_db(picture: Image.Image | Array, original: Image.Image | Array) -> float:
    """PSNR on BT.601 Y, of pictures or (H, W, 3) uint8."""
    luma, expected = (luma_from_pixels(np.asarray(image)) for image in (picture, original))
    return round(psnr_db(luma, expected), 4)


def compile_demo(
    model: SRModel, calibration: Calibration | None, target: str, output: Path, precision: str | None = None
) -> Path:
    """An engine of the bundled model in the target's usual tiles."""
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        exported = Path(folder) / "onnx"
        first, *further = target_from_name(target).tiles
        export_model(model, calibration, lowering_from_name(target), first, exported, further_tiles=further)
        compile_engine(exported, output, BuildOptions(target=target), precision=precision)
    return output
