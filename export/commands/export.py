"""`intsr export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from intsr.console import common_options, detail, emit_json, model_options, say


@click.command(epilog="Example: intsr export demo --calibration demo-w8a8 --target cpu -o demo-onnx")
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Calibration folder; full precision without.")
@click.option("--target", default="cpu", show_default=True, help="Target, or lowering, that the graphs are for.")
@click.option(
    "--plugins",
    type=click.Choice(["group-norm"]),
    multiple=True,
    help="tensorrt: operators that run with kernels of IntSR's own; compiling then needs nvcc.",
)
@model_options
@common_options
def export(
    model: str,
    output: Path,
    calibration: Path | None,
    target: str,
    plugins: tuple[str, ...],
    tile_px: int,
    context: Path | None,
    lora: Path | None,
    as_json: bool,
) -> None:
    """Write encoder, UNet and decoder as QDQ ONNX.

    MODEL is a folder in diffusers' format, a single SD 2.1 file, owner/name@REVISION of the Hugging Face hub, or the
    word demo.
    """
    from intsr.calib.calibration import load_calibration
    from intsr.calib.model import open_model
    from intsr.export.lowering import lowering_from_name
    from intsr.export.onnx_export import EXPORT_NAME
    from intsr.export.pipeline import export_model
    from intsr.files import check_replaceable_folder, check_writable_place

    lowering = lowering_from_name(target, plugins)
    check_replaceable_folder(output, marker=EXPORT_NAME)
    check_writable_place(output.parent)
    ranges = load_calibration(calibration) if calibration else None
    written = export_model(open_model(model, context, lora), ranges, lowering, tile_px, output, detail)
    say(f"{output}: {written.bits}, lowered as {written.lowering}, tile {tile_px}")
    if as_json:
        emit_json({"output": str(output), **asdict(written)})
