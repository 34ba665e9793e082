"""The whole way for a film with the bundled video model: calibrate, export, compile, upscale, compare.

The film is a photograph (scikit-image's `astronaut`, public domain) that a camera pans over and then rests on, while
a piece of another one moves across, reduced, with a sensor's noise. The model was trained on neither.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.open import load_model
from intsr.calib.models.video import VideoModelSource, open_video_model
from intsr.calib.video import calibrate_video
from intsr.cli.console import Stopwatch, say
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.engines.demo.run import compile_demo, keep_summary, psnr_y_db, save_png, saved_pair
from intsr.export.video import DEFAULT_FRAMES, export_video_model
from intsr.optional import require
from intsr.runtime.batch.films import upscale_film
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine
from intsr.runtime.films.names import numbered
from intsr.runtime.films.types import FilmOptions
from intsr.runtime.measure.flicker import FlickerMeter
from intsr.targets import lowering_from_name, target_from_name
from intsr.types import Bits

MODEL, IMAGE_MODEL = "demo-video", "demo"
CALIBRATION_PICTURES = ("chelsea", "rocket")
BITS = "w8a8"
FRAMES, FRAMES_PER_S = 17, 12
SIDE_PX = 448
# The camera's and the piece's way a frame, in original pixels; the noise's deviation in levels of the low resolution.
CAMERA_PX, PIECE_PX, NOISE = (2, 3), (-5, 4), 1.5
MOVING_FRAMES = 8
PIECE = (340, 150, 460, 240)
FRAME_NAMES = "%06d.png"

Pixels = NDArray[np.uint8]


def run_video_demo(output: Path) -> dict[str, Any]:
    """Fill `output` with frames, films, engines and `summary.json`; returns the summary.

    Raises whatever a stage raises, and VerificationError where the integer film is no better than bicubic.
    """
    watch = Stopwatch()
    say("making a film of two photographs")
    source = open_video_model(MODEL)
    factor = source.spec.upscale_factor
    originals = _panned_film()
    low = _reduced(originals, factor)
    for name, frames in (("original", originals), ("lr", low)):
        _save_frames(frames, output / name)
    seen = [output / "calibration-pictures" / f"{name}.png" for name in CALIBRATION_PICTURES]
    for path in seen:
        saved_pair(path.stem, factor, path)
    say(f"calibrating on {len(seen)} photographs ({BITS})")
    recipe = Recipe("maxmin", Bits.parse(BITS), VIDEO_PARTS, target_from_name("cpu").tiles[0])
    calibration = calibrate_video(source.load(), seen, recipe)
    save_calibration(calibration, output / f"calibration-{BITS}")
    say("compiling three engines: fp32 and int8 of the video model, fp32 of the picture model")
    engines = {
        "picture_model": compile_demo(load_model(IMAGE_MODEL), None, "cpu", output / "demo-fp32.engine", "f32"),
        "fp32": _compile(source, None, output / "demo-video-fp32.engine", "f32"),
        "int8": _compile(source, calibration, output / f"demo-video-{BITS}.engine"),
    }
    films = {"bicubic": np.stack([_resized(frame, SIDE_PX) for frame in low])}
    for kind, engine in engines.items():
        say(f"upscaling {FRAMES} frames: {kind.replace('_', ' ')}")
        films[kind] = _upscaled(engine, output / "lr", output / f"sr_{kind}")
    film = FilmOptions(fps=Fraction(FRAMES_PER_S))
    with open_engine(engines["int8"]) as opened:
        upscale_film(opened, Job(output / "lr" / FRAME_NAMES, output / "sr_int8.mp4"), FileOptions(film=film))
    summary: dict[str, Any] = {"bits": BITS, "frames": FRAMES, "engine_bytes": engines["int8"].stat().st_size}
    for kind, frames in films.items():
        # All frames together, one below the other.
        summary[f"psnr_{kind}_db"] = psnr_y_db(np.concatenate(frames), np.concatenate(originals))
        summary[f"flicker_{kind}"] = _flicker(frames, originals)
    summary["seconds"] = round(watch.seconds, 1)
    keep_summary(summary, output / "summary.json")
    return summary


def _panned_film() -> Pixels:
    """(FRAMES, SIDE_PX, SIDE_PX, 3): `astronaut` passing by, a round piece of `coffee` moving across."""
    data = require("skimage.data", "the demonstration's photographs")
    background, piece = Image.fromarray(data.astronaut()), Image.fromarray(data.coffee()).crop(PIECE)
    mask = Image.new("L", piece.size)
    ImageDraw.Draw(mask).ellipse((0, 0, piece.width - 1, piece.height - 1), fill=255)
    frames = []
    for index in range(FRAMES):
        left, top = (min(index, MOVING_FRAMES) * step for step in CAMERA_PX)
        frame = background.crop((left, top, left + SIDE_PX, top + SIDE_PX))
        frame.paste(piece, (SIDE_PX // 2 + index * PIECE_PX[0], SIDE_PX // 2 + index * PIECE_PX[1]), mask)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def _reduced(originals: Pixels, factor: int) -> Pixels:
    """By antialiased bicubic, with a sensor's noise."""
    small = np.stack([_resized(frame, SIDE_PX // factor) for frame in originals])
    noise = np.random.default_rng(0).normal(0, NOISE, small.shape)
    return np.clip(np.rint(small + noise), 0, 255).astype(np.uint8)


def _resized(frame: Pixels, side_px: int) -> Pixels:
    return np.asarray(Image.fromarray(frame).resize((side_px, side_px), Image.Resampling.BICUBIC))


def _save_frames(frames: Pixels, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, 1):
        save_png(Image.fromarray(frame), numbered(folder / FRAME_NAMES, number))


def _compile(
    source: VideoModelSource, calibration: Calibration | None, output: Path, precision: str | None = None
) -> Path:
    target = target_from_name("cpu")
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        graphs = Path(folder) / "onnx"
        lowering = lowering_from_name(target.lowering)
        export_video_model(source, calibration, lowering, graphs, tiles_px=target.tiles[:1], frames=DEFAULT_FRAMES)
        compile_engine(graphs, output, BuildOptions(target=target.name), precision=precision)
    return output


def _upscaled(engine: Path, frames: Path, output: Path) -> Pixels:
    """Numbered pictures, as `intsr upscale` makes them."""
    with open_engine(engine) as opened:
        upscale_film(opened, Job(frames / FRAME_NAMES, output / FRAME_NAMES), FileOptions())
    made = [numbered(output / FRAME_NAMES, number) for number in range(1, FRAMES + 1)]
    return np.stack([np.asarray(Image.open(path)) for path in made])


def _flicker(frames: Pixels, originals: Pixels) -> float:
    """Levels of 8 bits, where the original stands still or nearly so."""
    meter = FlickerMeter()
    for original, frame in zip(originals, frames, strict=True):
        meter.add(original, frame)
    assert meter.flicker is not None
    return round(meter.flicker, 4)
