"""`intsr calibrate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.calib.options import (
    TRAINING_OPTIONS,
    check_source,
    check_training_options,
    symmetric_option,
    training_options,
)
from intsr.cli.console import common_options, detail, emit_json, meter, progress, say, say_notes
from intsr.cli.options import (
    FiniteFloat,
    SeveralValuesCommand,
    given_options,
    model_options,
    passionsr_option,
    refuse_given,
)
from intsr.errors import ImageError, UsageError
from intsr.types import Bits, WeightOptions

if TYPE_CHECKING:
    from intsr.calib.calibrate import Recipe
    from intsr.calib.calibration.types import Calibration, PhaseName
    from intsr.calib.models.open import ModelSource, SRModel
    from intsr.calib.models.video import VideoModelSource

# Parameters that change something of a video model, beside those of training.
OF_VIDEO = frozenset(
    (
        *("model", "images", "output", "method", "bits", "tile_px", "context", "limit", "overwrite", "restart"),
        *("as_json", "quiet", "verbose", "guard", "parts", *TRAINING_OPTIONS),
    )
)


@click.command(
    cls=SeveralValuesCommand,
    epilog="Examples: intsr calibrate demo --images photos/ --bits w6a6 -o demo-w6a6; "
    "intsr calibrate sd21/ --passionsr unet.pth vae.pth -o official-w8a8",
)
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of low-resolution pictures.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Calibration folder to write; --dry-run needs none."
)
@click.option(
    "--method",
    default="passionsr",
    show_default=True,
    help="One pass: maxmin, maxmin+let. Searched: quarot, svdquant. "
    "Trained: lbq, lbq+let, passionsr, qartsr, lsq, qdiffusion, efficientdm. Of video models: maxmin, smoothquant, "
    "quarot, svdquant, lsgquant.",
)
@click.option(
    "--bits",
    default="w8a8",
    show_default=True,
    metavar="BITS",
    help="Bits of weights and activations, 2 to 8 each; with rules for layers, 'w4a4 vae.decoder.*=w8a8'; or a .json "
    "file with `default` and `rules`.",
)
@click.option(
    "--budget",
    type=FiniteFloat(2, 8),
    help="Mean bits a weight: each block gets 2 to 8, by what it does to pictures.",
)
@click.option("--parts", default="unet,vae", show_default=True, help="What is quantized; of video transformer,vae.")
@symmetric_option
@click.option(
    "--guard/--no-guard", default=True, help="Look at smooth and flat pictures made for it, too.  [default: guard]"
)
@passionsr_option
@model_options
@click.option("--limit", type=click.IntRange(1), help="Use at most so many pictures.")
@click.option("--overwrite", is_flag=True, help="Replace a calibration that was made with other settings, too.")
@training_options
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has done.")
@click.option("--dry-run", is_flag=True, help="Measure one block, estimate time and memory, write nothing.")
@common_options
def calibrate(
    *,
    model: str,
    images: Path | None,
    output: Path | None,
    official: tuple[Path, ...],
    weights: WeightOptions,
    limit: int | None,
    budget: float | None,
    overwrite: bool,
    restart: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn how to quantize a model from a folder of low-resolution pictures, or import what PassionSR learned.

    MODEL is a folder in diffusers' format or of AdcSR's two files, a single SD 2.1 file, owner/name@REVISION of the
    Hugging Face hub, or the word demo. Pictures that cannot be read, or are transparent, are named and skipped.
    Methods that train keep what they have done in OUTPUT.work: started again after an interruption, the same command
    goes on from there to the same result. A calibration in OUTPUT is replaced where model, method, bits and parts
    are the same.

    A video model is calibrated by maxmin, smoothquant, quarot, svdquant or lsgquant; its --images are a folder of
    films, a film, frames/%06d.png, or a folder of pictures, which then stand still. Its VAE has 8 bits in any case,
    or stays in floats with --parts transformer.
    """
    from intsr.calib.calibrate import parse_parts
    from intsr.calib.data.pictures import check_picture
    from intsr.calib.estimate import estimate
    from intsr.calib.mixed_bits import check_rules
    from intsr.calib.models.open import open_model
    from intsr.calib.models.sites import sites_of_model
    from intsr.calib.models.video_cost import video_architecture
    from intsr.runtime.pictures.reader import list_pictures

    check_source(images is not None, bool(official))
    if video_architecture(model, None) is not None:
        _calibrate_video(
            model,
            images,
            output,
            context=weights.context,
            limit=limit,
            overwrite=overwrite,
            restart=restart,
            as_json=as_json,
            **settings,
        )
        return
    if budget is not None:
        refuse_given(("bits",), "--budget", "one of them")
    recipe = _recipe(**{**settings, "parts": parse_parts(settings["parts"])})
    check_training_options(recipe.stages, bool(official), dry_run)
    pictures = list_pictures(images) if images is not None else []
    _check_output(output, dry_run)
    source = open_model(model, **weights.arguments)
    say_notes(source.notes)
    if dry_run:
        result = estimate(source.load(), pictures[:limit], recipe)
        for line in result.lines():
            say(line)
        if as_json:
            emit_json(result.to_mapping())
        return
    assert output is not None
    if official:
        calibration = _import(source, official, recipe, output, overwrite)
    else:
        loaded = source.load()
        check_rules(recipe.bits, sites_of_model(loaded, recipe.parts))
        pictures = _usable(pictures, limit, check_picture)
        if budget is not None:
            recipe = _within_budget(loaded, pictures, recipe, budget)
        _announce_replaced(output, source, (recipe.method, recipe.bits, recipe.parts), overwrite)
        calibration = _run(loaded, pictures, recipe, output, restart)
    if as_json:
        _emit(calibration, output, len(pictures))


def _emit(calibration: Calibration, output: Path, pictures: int) -> None:
    facts = {"output": str(output), "sites": len(calibration.sites)}
    facts |= {name: getattr(calibration, name) for name in ("seconds", "peak_bytes", "method", "parts")}
    emit_json(facts | {"bits": str(calibration.bits), "pictures": pictures})


def _calibrate_video(
    model: str,
    images: Path | None,
    output: Path | None,
    *,
    context: Path | None,
    limit: int | None,
    overwrite: bool,
    restart: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    from intsr.calib.calibrate import parse_video_parts
    from intsr.calib.data.clips import check_clip, list_clips
    from intsr.calib.mixed_bits import check_rules
    from intsr.calib.models.families.wan import VIDEO_PARTS
    from intsr.calib.models.video import integer_video_sites, open_video_model
    from intsr.calib.video import calibrate_video, steps_of_video_recipe

    refuse_given([name for name in given_options() if name not in OF_VIDEO], "a video model", "a picture model")
    refuse_given(("lpips",), "a video model", "a picture model")
    parts = parse_video_parts(settings["parts"]) if "parts" in given_options() else VIDEO_PARTS
    recipe = _recipe(**{**settings, "parts": parts})
    check_training_options(recipe.stages, is_import=False, dry_run=False)
    _check_output(output, dry_run=False)
    assert output is not None and images is not None
    clips = list_clips(images)
    source = open_video_model(model, context)
    _announce_replaced(output, source, (recipe.method, recipe.bits, recipe.parts), overwrite)
    clips = _usable(clips, limit, check_clip)
    loaded = source.load()
    # The VAE has 8 bits, whatever a rule says.
    check_rules(recipe.bits, integer_video_sites(loaded, VIDEO_PARTS[:1]))
    run = partial(calibrate_video, loaded, clips, recipe, progress=partial(progress, description="calibrating"))
    calibration = _kept(run, recipe, output, steps_of_video_recipe(loaded, recipe), restart)
    _save(calibration, output, recipe, f"{len(clips)} clips")
    if as_json:
        _emit(calibration, output, len(clips))


def _check_output(output: Path | None, dry_run: bool) -> None:
    """Before long work. Raises UsageError."""
    from intsr.calib.calibration.files import JSON_NAME
    from intsr.files import check_replaceable_folder, check_writable_place

    if output is None:
        if not dry_run:
            raise UsageError("-o", "not given", "the calibration folder to write", "or give --dry-run")
        return
    check_replaceable_folder(output, marker=JSON_NAME)
    check_writable_place(output.parent)


def _announce_replaced(
    output: Path,
    source: ModelSource | VideoModelSource,
    settings: tuple[str, Bits, tuple[str, ...]],
    overwrite: bool,
) -> None:
    """settings: method, bits and parts."""
    from intsr.calib.calibration.files import JSON_NAME, check_same_settings

    if overwrite:
        if (output / JSON_NAME).exists():
            say(f"{output}: the calibration that is there will be replaced")
        return
    method, bits, parts = settings
    facts: dict[str, Any] = {"method": method, "bits": bits, "parts": parts}
    if check_same_settings(output, model=source.spec.name, digest=source.digest, **facts):
        say(f"{output}: made before with the same model, method, bits and parts; it will be replaced")


def _usable(pictures: list[Path], limit: int | None, check: Callable[[Path], None]) -> list[Path]:
    from intsr.calib.data.pictures import usable_pictures

    skipped = 0

    def skip(error: ImageError) -> None:
        nonlocal skipped
        skipped += 1
        say(f"skipped: {error}")

    chosen = usable_pictures(pictures, limit, skip, check)
    if skipped:
        say(f"{skipped} of {len(chosen) + skipped} skipped")
    return chosen


def _import(
    source: ModelSource, files: tuple[Path, ...], recipe: Recipe, output: Path, overwrite: bool
) -> Calibration:
    from intsr.calib.calibration.files import save_calibration
    from intsr.calib.passionsr.import_checkpoint import import_passionsr

    calibration = import_passionsr(source.load(), files, recipe.bits, recipe.tile_px)
    _announce_replaced(output, source, (calibration.method, calibration.bits, calibration.parts), overwrite)
    save_calibration(calibration, output)
    say(
        f"{output}: {len(calibration.sites)} layers of {', '.join(calibration.parts)}, read as {calibration.bits} "
        "(the files do not say); linear layers keep the official sign slip they were trained with"
    )
    return calibration


def _recipe(*, bits: str, parts: tuple[str, ...], **settings: Any) -> Recipe:
    from intsr.calib.calibrate import Recipe
    from intsr.calib.learn.train import TrainingOptions
    from intsr.calib.mixed_bits import bits_from_text

    training = TrainingOptions(**{field.name: settings.pop(field.name) for field in fields(TrainingOptions)})
    return Recipe(bits=bits_from_text(bits), parts=parts, training=training, **settings)


def _within_budget(model: SRModel, pictures: list[Path], recipe: Recipe, mean_bits: float) -> Recipe:
    """The recipe with bits by layer."""
    from intsr.calib.calibrate import crops_of_recipe
    from intsr.calib.mixed_bits import BUDGET_CROPS, bits_in_budget, block_errors
    from intsr.calib.models.phases import in_phases
    from intsr.calib.models.sites import integer_sites

    say(f"measuring what each block's rounding does to {BUDGET_CROPS} crops")
    crops = crops_of_recipe(model, pictures, replace(recipe, crops=max(BUDGET_CROPS, recipe.training.batch)))
    errors = block_errors(model, recipe.parts, crops.train[:BUDGET_CROPS], crops.guard)
    sizes = {site: layer.weight.numel() for site, layer in integer_sites(in_phases(model), recipe.parts).items()}
    return replace(recipe, bits=bits_in_budget(errors, sizes, mean_bits))


def _run(model: SRModel, pictures: list[Path], recipe: Recipe, output: Path, restart: bool) -> Calibration:
    from intsr.calib.calibrate import calibrate as run
    from intsr.calib.calibrate import steps_of_recipe
    from intsr.calib.low_bits import low_bits_warning

    watch = partial(progress, description="calibrating", total=len(pictures))
    whole = partial(run, model, pictures, recipe, progress=watch)
    calibration = _kept(whole, recipe, output, steps_of_recipe(model, recipe), restart)
    warning = low_bits_warning(model, calibration, pictures)
    _save(calibration, output, recipe, f"{len(pictures)} pictures")
    if warning is not None:
        say(warning)
    return calibration


def _kept(run: Callable[..., Calibration], recipe: Recipe, output: Path, steps: int, restart: bool) -> Calibration:
    """Calibrate with a meter of so many training steps, and with a work folder that an interruption leaves."""
    from intsr.calib.learn.journal import RUN_NAME, WORK_SUFFIX, remove_work

    work = output.with_name(output.name + WORK_SUFFIX)
    if restart:
        remove_work(work)
    if recipe.trains and (work / RUN_NAME).exists():
        say(f"going on from {work}")
    with meter(f"{recipe.method} {recipe.bits}", steps) as advance:
        last: list[PhaseName | None] = [None]

        def report(phase: PhaseName, steps: int, loss: float) -> None:
            place = phase.block.rpartition(".")[2] or phase.network
            advance(steps, f"{place}: {phase.stage}  loss {loss:.2e}")
            if phase != last[0]:
                last[0] = phase
                detail(f"{phase}: loss {loss:.3e}")

        return run(report=report, work=work)


def _save(calibration: Calibration, output: Path, recipe: Recipe, seen: str) -> None:
    """Write it, and what it is in a line. seen: how many pictures or clips, in words."""
    from intsr.calib.calibration.files import save_calibration
    from intsr.calib.learn.journal import WORK_SUFFIX, remove_work

    save_calibration(calibration, output)
    if recipe.trains:
        remove_work(output.with_name(output.name + WORK_SUFFIX))
    say(
        f"{output}: {len(calibration.sites)} layers, {calibration.method} {calibration.bits}, "
        f"{seen}, {calibration.seconds:.1f} s, {calibration.peak_bytes / 1e9:.2f} GB"
    )
