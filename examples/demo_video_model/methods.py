"""What the methods for video transformers are worth on a model: the rows of docs/measure/video.md.

    python examples/demo_video_model/methods.py MODEL --clips LR_TRAIN --held LR --hr HR -o OUT

LR_TRAIN: films to calibrate on. LR and HR: films of the same names that no training has seen, low resolution and
original; of each the first nine frames are looked at, one tile. Rows: every method at W8A8, W6A6 and W4A4 through its
compiled `cpu` engine; LSGQuant without each of its parts at W4A4, also compiled; and DRAQ's three forms at W4A4,
simulated, as no target finds factors as it runs. PSNR on Y to the originals, and on RGB to full precision.

Every row is kept in OUT/rows.json when it is done; the same command goes on from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.data.clips import calibration_clips, list_clips
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import Method, Stage
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.learn.video import learn_video
from intsr.calib.methods.lsgquant import METHOD, RATE, TRAINED
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.observe.video import observe_video
from intsr.calib.video import CLIP_FRAMES, calibrate_video, run_of_recipe
from intsr.engines.commands.compile import compile_command
from intsr.engines.verify.chunks import torch_video_backend
from intsr.kernels.draq import DYNAMIC, STATIC, STATIC_CHANNELS
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.engine import open_engine
from intsr.runtime.films.read import FilmReader
from intsr.runtime.films.types import FilmOptions
from intsr.runtime.measure.metrics import luma_from_pixels, psnr_db
from intsr.types import Bits

Pixels = NDArray[np.uint8]
Chunk = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Row = Callable[[], dict[str, Any]]
NAMES = ("lsgquant", "svdquant", "quarot", "smoothquant", "maxmin")
BITS = ("w4a4", "w6a6", "w8a8")


@dataclass(frozen=True, slots=True)
class Held:
    """A held-out clip. x: (1, 3, frames, S, S) in [-1, 1]. original: (frames, S, S, 3)."""

    name: str
    x: NDArray[np.float32]
    original: Pixels


def pixels_from_chunk(frames: NDArray[np.float32]) -> Pixels:
    """(1, 3, frames, H, W) in [-1, 1] -> (frames, H, W, 3) uint8."""
    levels = np.rint((np.clip(frames[0], -1, 1) + 1) * 127.5)
    return levels.astype(np.uint8).transpose(1, 2, 3, 0)


def held_out_clips(low: Path, original: Path, model: VideoModel, tile_px: int) -> list[Held]:
    """The first tile of each film."""
    clips = []
    side = tile_px * model.spec.upscale_factor
    for path in list_clips(low):
        x = next(calibration_clips([path], model.spec, tile_px, CLIP_FRAMES)).numpy()
        with FilmReader(original / path.name, FilmOptions()) as film:
            frames = np.stack([frame.pixels[:side, :side] for frame in islice(film.frames(), CLIP_FRAMES)])
        clips.append(Held(path.stem, x, frames.astype(np.uint8)))
    return clips


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that rows share."""

    model: VideoModel
    folder: str
    clips: list[Path]
    held: list[Held]
    output: Path
    tile_px: int
    training: TrainingOptions
    crop_px: int
    crops: int
    # The VAE in 8 bits, too.
    vae: bool

    def recipe(self, method: str, bits: str, plan: Method | None = None) -> Recipe:
        own: Any = {"crop_px": self.crop_px, "crops": self.crops, "training": self.training, "plan": plan}
        parts = VIDEO_PARTS if self.vae else VIDEO_PARTS[:1]
        return Recipe(method, Bits.parse(bits), parts, self.crop_px, **own)

    def engine(self, name: str, calibrated: bool) -> Path:
        """Compile, or take what is there."""
        path = self.output / f"{name}.engine"
        if not path.exists():
            of = ["--calibration", str(self.output / name)] if calibrated else ["--bits", "fp"]
            sizes = ["--tile", str(self.tile_px), "--frames", str(CLIP_FRAMES)]
            compile_command.main([self.folder, *of, *sizes, "-o", str(path), "-q"], standalone_mode=False)
        return path

    def outputs(self, run: Chunk) -> dict[str, Pixels]:
        return {clip.name: pixels_from_chunk(run(clip.x)) for clip in self.held}

    def engine_outputs(self, path: Path) -> dict[str, Pixels]:
        with open_engine(path, precision="f32") as opened:
            backend: VideoBackend = opened.backend
            return self.outputs(lambda x: np.concatenate(list(backend.run_chunk(x)), axis=2))

    def scores(self, outputs: Mapping[str, Pixels], exact: Mapping[str, Pixels]) -> dict[str, float]:
        """Means over the clips."""
        to_original, to_exact = [], []
        for clip in self.held:
            got = outputs[clip.name]
            lumas = (luma_from_pixels(np.concatenate(list(frames))) for frames in (got, clip.original))
            to_original.append(psnr_db(*lumas))
            to_exact.append(psnr_db(got, exact[clip.name]))
        return {"psnr_y_db": float(np.mean(to_original)), "to_full_precision_db": float(np.mean(to_exact))}


def simulated(work: Work, transformer: torch.nn.Module, calibration: Calibration | None) -> Chunk:
    """The VAE as folded, and a transformer of torch between its halves."""
    backend = torch_video_backend(work.model, calibration, work.tile_px, CLIP_FRAMES)

    @torch.no_grad()
    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        denoised = transformer(torch.from_numpy(backend.encode(x))).numpy()
        return np.concatenate(list(backend.decode(denoised)), axis=2)

    return run


def simulated_row(work: Work, exact: Mapping[str, Pixels], recipe: Recipe) -> dict[str, Any]:
    """A row of what no engine computes."""
    run, seen, guard = run_of_recipe(work.model, work.clips, recipe, Journal(None, {}), lambda *_: None)
    sites = observe_video(work.model, seen, recipe.bits, ("vae",), guard)
    digest, name = work.model.digest, work.model.spec.name
    vae = Calibration("maxmin", recipe.bits, ("vae",), name, digest, 1, recipe.tile_px, 0.0, 0, sites)
    learned = learn_video(work.model, recipe.bits, run)
    return work.scores(work.outputs(simulated(work, learned.quantized, vae if work.vae else None)), exact)


def engine_row(work: Work, exact: Mapping[str, Pixels], name: str, recipe: Recipe) -> dict[str, Any]:
    """Calibrate, compile, upscale."""
    start = time.process_time()
    calibration = calibrate_video(work.model, work.clips, recipe)
    seconds = time.process_time() - start
    save_calibration(calibration, work.output / name)
    path = work.engine(name, calibrated=True)
    steps = sum(int(curve[-1][0]) for curve in calibration.curves.values())
    facts = {"calibration_cpu_s": seconds, "joint_steps": steps, "engine_mb": path.stat().st_size / 1e6}
    return work.scores(work.engine_outputs(path), exact) | facts


def ablations(steps: int, of_recipe: int) -> dict[str, Method]:
    """LSGQuant without each of its parts. steps: that the whole has trained, of_recipe: its --joint-steps."""
    uniform = (Stage("all", TRAINED, share=steps / of_recipe, rate=RATE),)
    return {
        "no rotation": replace(METHOD, rotated=False),
        "no channel factors": replace(METHOD, let="none"),
        "no branch": replace(METHOD, rank=0),
        "no VOLTS": replace(METHOD, volts=False, joint=uniform),
        "no QAO": replace(METHOD, volts=False, joint=()),
        "ranges not trained": replace(METHOD, joint=tuple(replace(s, trains=TRAINED[2:]) for s in METHOD.joint)),
    }


def forms() -> dict[str, Method]:
    """DRAQ's; where s is found as it runs, none is in the weights."""
    return {
        STATIC: METHOD,
        STATIC_CHANNELS: replace(METHOD, form=STATIC_CHANNELS),
        DYNAMIC: replace(METHOD, form=DYNAMIC, let="none"),
    }


def part_rows(work: Work, exact: Mapping[str, Pixels], steps: int) -> Iterator[tuple[str, Row]]:
    """LSGQuant without its parts, then DRAQ's forms. steps: that the whole has trained."""
    for name, plan in ablations(steps, work.training.joint_steps).items():
        recipe = work.recipe("lsgquant", "w4a4", plan)
        yield f"lsgquant w4a4, {name}", partial(engine_row, work, exact, name.replace(" ", "-"), recipe)
    for form, plan in forms().items():
        recipe = work.recipe("lsgquant", "w4a4", plan)
        yield f"lsgquant w4a4, DRAQ {form}, simulated", partial(simulated_row, work, exact, recipe)


class Table:
    """Rows by name, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, make: Row) -> None:
        if name not in self.rows:
            self.rows[name] = make()
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
        values = (f"{key} {value:.3f}" for key, value in self.rows[name].items())
        click.echo(" | ".join(["", name, *values, ""]).strip())


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder")
@click.option("--clips", type=FOLDER, required=True, help="Low-resolution films to calibrate on.")
@click.option("--held", type=FOLDER, required=True, help="Low-resolution films to judge by.")
@click.option("--hr", type=FOLDER, required=True, help="Their originals, of the same names.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--tile", "tile_px", default=64, show_default=True, help="Low-resolution tile of the engines.")
@click.option("--crop", "crop_px", default=32, show_default=True, help="Side of the crops to calibrate on.")
@click.option("--crops", default=48, show_default=True, help="How many of them.")
@click.option("--joint-steps", default=120, show_default=True)
@click.option("--methods", "names", default=",".join(NAMES), show_default=True)
@click.option("--bits", "widths", default=",".join(BITS), show_default=True)
@click.option("--parts/--no-parts", default=True, help="Ablations and DRAQ's forms, too.")
@click.option("--vae/--no-vae", default=True, help="The VAE in 8 bits, or the transformer alone.")
def main(folder: str, **options: Any) -> None:
    """Fill in and print the table."""
    torch.set_num_threads(1)
    output, tile_px = options["output"], options["tile_px"]
    output.mkdir(parents=True, exist_ok=True)
    model = load_video_model(folder)
    held = held_out_clips(options["held"], options["hr"], model, tile_px)
    training = TrainingOptions(joint_steps=options["joint_steps"])
    clips = list_clips(options["clips"])
    work = Work(
        model, folder, clips, held, output, tile_px, training, options["crop_px"], options["crops"], options["vae"]
    )
    exact, table = work.engine_outputs(work.engine("fp", calibrated=False)), Table(output / "rows.json")
    table.add("bicubic", lambda: work.scores(work.outputs(lambda x: x), exact))
    table.add("full precision", lambda: {"psnr_y_db": work.scores(exact, exact)["psnr_y_db"]})
    for bits, method in product(options["widths"].split(","), options["names"].split(",")):
        recipe = work.recipe(method, bits)
        table.add(f"{method} {bits}", partial(engine_row, work, exact, f"{method}-{bits}", recipe))
    if options["parts"]:
        for name, make in part_rows(work, exact, int(table.rows["lsgquant w4a4"]["joint_steps"])):
            table.add(name, make)


if __name__ == "__main__":
    main()
