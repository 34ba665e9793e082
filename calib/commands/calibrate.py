"""`intsr calibrate`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from intsr.console import common_options, detail, emit_json, meter, model_options, progress, say
from intsr.errors import UsageError
from intsr.several_values import SeveralValuesCommand, passionsr_option

if TYPE_CHECKING:
    from intsr.calib.calibrate import Recipe
    from intsr.calib.calibration import Calibration
    from intsr.calib.model import SRModel

WORK_SUFFIX = ".work"
# Parameters that change something where a checkpoint is imported.
OF_IMPORT = frozenset(
    ("model", "output", "bits", "official", "tile_px", "context", "lora", "as_json", "quiet", "verbose")
)


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the methods that train."""
    decorators = (
        click.option(
            "--crop", "crop_px", type=click.IntRange(1), default=32, show_default=True, help="Side of a crop."
        ),
        click.option("--crops", type=click.IntRange(1), default=48, show_default=True, help="Crops to train on."),
        click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops a step."),
        click.option("--block-steps", type=click.IntRange(0), default=12, show_default=True, help="Steps a block."),
        click.option(
            "--joint-steps", type=click.IntRange(0), default=120, show_default=True, help="Steps a network."
        ),
        click.option("--rate", type=click.FloatRange(0, 100, True, True), default=1.0, help="Factor on all rates."),
        click.option(
            "--cache",
            type=click.Choice(["ram", "disk", "none"]),
            default="ram",
            show_default=True,
            help="Where a block's inputs are kept; none: computed again for every step.",
        ),
        click.option("--recompute", is_flag=True, help="Joint steps: compute activations twice, in less memory."),
        click.option("--mixed", is_flag=True, help="bfloat16 where that is safe: for GPUs."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True, help="Of crops, batches and samples."),
        click.option("--restart", is_flag=True, help="Forget what an interrupted run has done."),
        click.option("--dry-run", is_flag=True, help="Measure one block, estimate time and memory, write nothing."),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


@click.command(
    cls=SeveralValuesCommand,
    epilog="Examples: intsr calibrate demo --images photos/ --bits w6a6 -o demo-w6a6; "
    "intsr calibrate sd21/ --passionsr unet.pth vae.pth -o official-w8a8",
)
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of low-resolution pictures.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Calibration folder to write.")
@click.option(
    "--method",
    default="passionsr",
    show_default=True,
    help="One pass: maxmin, maxmin+let. Trained: lbq, lbq+let, passionsr, lsq, qdiffusion, efficientdm.",
)
@click.option("--bits", default="w8a8", show_default=True, help="Bits of weights and activations, 2 to 8 each.")
@click.option("--parts", default="unet,vae", show_default=True, help="What is quantized.")
@click.option("--symmetric", is_flag=True, help="Activation grids around 0: no shift in TensorRT's graph.")
@passionsr_option
@model_options
@click.option("--limit", type=click.IntRange(1), help="Use at most so many pictures.")
@training_options
@common_options
def calibrate(
    model: str,
    images: Path | None,
    output: Path,
    official: tuple[Path, ...],
    context: Path | None,
    lora: Path | None,
    limit: int | None,
    restart: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn how to quantize a model from a folder of low-resolution pictures, or import what PassionSR learned.

    MODEL is a folder in diffusers' format, a single SD 2.1 file, owner/name@REVISION of the Hugging Face hub, or the
    word demo. Methods that train keep what they have done in OUTPUT.work: started again after an interruption, the
    same command goes on from there to the same result.
    """
    from intsr.calib.calibration import JSON_NAME
    from intsr.calib.model import load_model
    from intsr.calib.pictures import list_pictures
    from intsr.files import check_replaceable_folder, check_writable_place

    _check_source(images, official)
    recipe = _recipe(**settings)
    pictures = list_pictures(images)[:limit] if images is not None else []
    check_replaceable_folder(output, marker=JSON_NAME)
    check_writable_place(output.parent)
    loaded = load_model(model, context, lora)
    if official:
        _emit(_import(loaded, official, recipe, output), output, 0, as_json)
        return
    if dry_run:
        _dry_run(loaded, pictures, recipe, as_json)
        return
    work = output.with_name(output.name + WORK_SUFFIX)
    if restart:
        shutil.rmtree(work, ignore_errors=True)
    calibration = _run(loaded, pictures, recipe, work, output)
    _emit(calibration, output, len(pictures), as_json)


def _emit(calibration: Calibration, output: Path, pictures: int, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "output": str(output),
                "sites": len(calibration.sites),
                "seconds": calibration.seconds,
                "peak_bytes": calibration.peak_bytes,
                "method": calibration.method,
                "bits": str(calibration.bits),
                "parts": list(calibration.parts),
                "pictures": pictures,
            }
        )


def _check_source(images: Path | None, official: tuple[Path, ...]) -> None:
    """Raises UsageError: pictures to learn from, or files to import; with files nothing else is learned."""
    if (images is None) == (not official):
        raise UsageError("--images, --passionsr", "both or neither", "one of them")
    context = click.get_current_context()
    for parameter in context.command.params if official else ():
        name = parameter.name or ""
        if name not in OF_IMPORT and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(parameter.opts[0], "together with --passionsr", "--images: there is nothing to learn")


def _import(model: SRModel, files: tuple[Path, ...], recipe: Recipe, output: Path) -> Calibration:
    from intsr.calib.calibration import save_calibration
    from intsr.calib.official_calibration import import_official

    calibration = import_official(model, files, recipe.bits, recipe.tile_px)
    save_calibration(calibration, output)
    say(
        f"{output}: {len(calibration.sites)} layers of {', '.join(calibration.parts)}, read as {calibration.bits} "
        "(the files do not say); linear layers keep the official sign slip they were trained with"
    )
    return calibration


def _recipe(method: str, bits: str, parts: str, tile_px: int, symmetric: bool, **training: Any) -> Recipe:
    from intsr.calib.calibrate import Recipe, parse_parts
    from intsr.calib.learn import Effort
    from intsr.types import Bits

    names = ("block_steps", "joint_steps", "batch", "rate", "cache", "recompute", "mixed")
    effort = Effort(**{name: training[name] for name in names})
    crop_px = min(training["crop_px"], tile_px)
    return Recipe(
        method,
        Bits.parse(bits),
        parse_parts(parts),
        tile_px,
        symmetric,
        crop_px,
        training["crops"],
        effort,
        training["seed"],
        training["device"],
    )


def _run(model: SRModel, pictures: list[Path], recipe: Recipe, work: Path, output: Path) -> Calibration:
    from intsr.calib.calibrate import calibrate as run
    from intsr.calib.calibrate import steps_of_recipe
    from intsr.calib.calibration import save_calibration

    if work.exists() and recipe.trains:
        say(f"going on from {work}")
    description = f"{recipe.method} {recipe.bits}"
    with meter(description, steps_of_recipe(model, recipe)) as advance:
        last = [""]

        def report(phase: str, steps: int, loss: float) -> None:
            advance(steps, f"{phase.rpartition('.')[2]}  loss {loss:.2e}")
            if phase != last[0]:
                last[0] = phase
                detail(f"{phase}: loss {loss:.3e}")

        watched = (lambda batches: batches) if recipe.trains else _watched(len(pictures))
        calibration = run(model, pictures, recipe, watched, report, work)
    save_calibration(calibration, output)
    shutil.rmtree(work, ignore_errors=True)
    say(
        f"{output}: {len(calibration.sites)} layers, {calibration.method} {calibration.bits}, "
        f"{len(pictures)} pictures, {calibration.seconds:.1f} s, {calibration.peak_bytes / 1e9:.2f} GB"
    )
    return calibration


def _watched(total: int) -> Any:
    return lambda batches: progress(batches, "calibrating", total=total)


def _dry_run(model: SRModel, pictures: list[Path], recipe: Recipe, as_json: bool) -> None:
    from intsr.calib.dry_run import estimate

    result = estimate(model, pictures, recipe)
    for line in result.lines():
        say(line)
    if as_json:
        emit_json(result.to_mapping())
