"""`intsr calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from intsr.console import common_options, emit_json, model_options, progress, say


@click.command(epilog="Example: intsr calibrate demo --images photos/ -o demo-w8a8")
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of low-resolution pictures.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Calibration folder to write.")
@click.option(
    "--method",
    default="maxmin",
    show_default=True,
    help="maxmin: smallest and largest value seen; maxmin+let: channels equalized first.",
)
@click.option("--bits", default="w8a8", show_default=True, help="Bits of weights and activations, 2 to 8 each.")
@click.option("--parts", default="unet,vae", show_default=True, help="What is quantized.")
@model_options
@click.option("--limit", type=click.IntRange(1), help="Use at most so many pictures.")
@common_options
def calibrate(
    model: str,
    images: Path,
    output: Path,
    method: str,
    bits: str,
    parts: str,
    tile_px: int,
    context: Path | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Learn the range of every layer's input from a folder of low-resolution pictures.

    MODEL is a model folder in diffusers' format, or the word demo.
    """
    from intsr.calib.calibrate import Recipe, parse_parts
    from intsr.calib.calibrate import calibrate as run
    from intsr.calib.calibration import JSON_NAME, save_calibration
    from intsr.calib.model import load_model
    from intsr.calib.pictures import list_pictures
    from intsr.files import check_replaceable_folder, check_writable_place
    from intsr.types import Bits

    recipe = Recipe(method, Bits.parse(bits), parse_parts(parts), tile_px)
    pictures = list_pictures(images)[:limit]
    check_replaceable_folder(output, marker=JSON_NAME)
    check_writable_place(output.parent)
    loaded = load_model(model, context)
    calibration = run(loaded, pictures, recipe, lambda batches: progress(batches, "calibrating", total=len(pictures)))
    save_calibration(calibration, output)
    say(
        f"{output}: {len(calibration.sites)} layers, {calibration.method} {calibration.bits}, "
        f"{len(pictures)} pictures, {calibration.seconds:.1f} s"
    )
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
                "pictures": len(pictures),
            }
        )
