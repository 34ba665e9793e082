"""`intsr retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from intsr.calib.options import learning_options
from intsr.cli.console import common_options, emit_json, meter, say, say_notes
from intsr.cli.options import model_options
from intsr.errors import UsageError
from intsr.types import WeightOptions


@click.command(epilog="Example: intsr retrain sd21-osediff/ --images photos/ --timestep auto -o osediff-t273")
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of low-resolution pictures.")
@click.option(
    "--timestep",
    required=True,
    metavar="T",
    help="The new timestep; auto: where the noise is as strong as what low resolution lacks.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of the LoRA.")
@click.option("--steps", type=click.IntRange(1), default=600, show_default=True, help="Training steps.")
@model_options
@learning_options(192)
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has done.")
@common_options
def retrain(
    *,
    model: str,
    images: Path,
    timestep: str,
    output: Path,
    weights: WeightOptions,
    tile_px: int,
    restart: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Move a model to another timestep, for engines of few bits: a LoRA on its UNet learns to make what it made.

    How much of a quantization error reaches the picture depends on the timestep. The teacher is MODEL itself; the
    result is a model like any other. An interrupted run goes on from OUTPUT.work.
    """
    from intsr.calib.data.pictures import usable_pictures
    from intsr.calib.learn.journal import RUN_NAME, WORK_SUFFIX, remove_work
    from intsr.calib.models.open import open_model
    from intsr.calib.models.spec import diffusion_spec
    from intsr.calib.retrain import RetrainRecipe, write_retrained
    from intsr.calib.retrain import retrain as run
    from intsr.files import check_replaceable_folder, check_writable_place
    from intsr.runtime.pictures.reader import list_pictures

    if timestep != "auto" and not timestep.isdecimal():
        raise UsageError("--timestep", repr(timestep), "a whole number, or auto")
    recipe = RetrainRecipe(None if timestep == "auto" else int(timestep), **settings)
    check_replaceable_folder(output, overwrite=False)
    check_writable_place(output.parent)
    source = open_model(model, **weights.arguments)
    say_notes(source.notes)
    pictures = usable_pictures(list_pictures(images), None, lambda error: say(f"skipped: {error}"))
    work = output.with_name(output.name + WORK_SUFFIX)
    if restart:
        remove_work(work)
    if (work / RUN_NAME).exists():
        say(f"going on from {work}")
    with meter("retraining", recipe.steps) as advance:

        def report(_: object, steps: int, loss: float) -> None:
            advance(steps, f"loss {loss:.2e}")

        result = run(source, pictures, recipe, tile_px=tile_px, report=report, work=work)
    size_bytes = write_retrained(source, result, output)
    remove_work(work)
    say(
        f"{output}: timestep {diffusion_spec(source.spec).timestep} to {result.timestep}, "
        f"loss {result.start:.2e} to {result.end:.2e}, {size_bytes / 1e6:.1f} MB, {result.seconds:.1f} s"
    )
    if as_json:
        facts = {name: getattr(result, name) for name in ("timestep", "alpha_bar", "start", "end", "seconds")}
        emit_json({"output": str(output), "size_bytes": size_bytes, **facts})
