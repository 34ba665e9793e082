"""`intsr compile`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from intsr.console import Stopwatch, common_options, emit_json, model_options, progress, say
from intsr.errors import UsageError

if TYPE_CHECKING:
    from intsr.calib.calibration import Calibration
    from intsr.calib.model import SRModel

TENSORRT = ("tensorrt", "tensorrt-rtx")
TARGETS_OF_OPTION = {
    "precision": ("cpu",),
    "workspace_mib": TENSORRT,
    "hardware_compatibility": TENSORRT,
    "timing_cache": TENSORRT,
}


@click.command(
    name="compile",
    epilog="Examples: intsr compile demo --images photos/ -o demo.engine; "
    "intsr compile demo-onnx/ --target tensorrt-rtx -o demo.rtx.engine",
)
@click.argument("source", metavar="MODEL|EXPORT")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .engine file to write.")
@click.option("--target", default="cpu", show_default=True, help="cpu, onnxruntime, tensorrt or tensorrt-rtx.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Calibration folder.")
@click.option("--images", type=click.Path(path_type=Path), help="Calibrate on these first, in one pass.")
@click.option("--bits", default="w8a8", show_default=True, help="With --images: wXaY; fp for full precision.")
@click.option("--parts", default="unet,vae", show_default=True, help="With --images: what is quantized.")
@model_options
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), help="cpu: of what is not integer.")
@click.option("--workspace", "workspace_mib", type=click.IntRange(1), help="TensorRT: scratch memory, MiB.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere+", "same-compute-capability"]),
    default="none",
    show_default=True,
    help="tensorrt: other GPUs that the plan must run on; costs speed.",
)
@click.option("--timing-cache", type=click.Path(path_type=Path), help="TensorRT: reuse measured kernel times.")
@common_options
def compile_command(
    source: str,
    output: Path,
    target: str,
    calibration: Path | None,
    images: Path | None,
    bits: str,
    parts: str,
    tile_px: int,
    context: Path | None,
    precision: str | None,
    workspace_mib: int | None,
    hardware_compatibility: str,
    timing_cache: Path | None,
    as_json: bool,
) -> None:
    """Build an .engine file.

    MODEL is a model folder in diffusers' format or the word demo, with --calibration, --images or --bits fp;
    EXPORT is a folder that `intsr export` wrote for the same target.
    """
    from intsr.engines.build_types import BuildOptions
    from intsr.engines.compiler import compile_engine
    from intsr.export.onnx_export import EXPORT_NAME
    from intsr.files import check_output_file

    watch = Stopwatch()
    is_export = (Path(source) / EXPORT_NAME).is_file()
    _check_options(target, is_export, calibration is not None)
    options = BuildOptions(
        target=target,
        workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
        hardware_compatibility=hardware_compatibility,
        timing_cache=timing_cache,
    )
    check_output_file(output)
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        export_folder = Path(source)
        if not is_export:
            export_folder = Path(folder) / "onnx"
            _export(source, target, calibration, images, bits, parts, tile_px, context, export_folder)
        manifest = compile_engine(
            export_folder, output, options, precision, lambda name: say(f"building {name} for {target}")
        )
    report: dict[str, Any] = {
        "output": str(output),
        "size_bytes": output.stat().st_size,
        "seconds": round(watch.seconds, 3),
        "target": target,
        "bits": manifest.bits,
        "networks": {
            name: {"kernels": plan.get("kernels"), "int8_mac_share": plan.get("int8_mac_share")}
            for name, plan in manifest.build["plans"].items()
        },
    }
    say(f"{output}: {manifest.bits} for {target}, {report['size_bytes'] / 1e6:.1f} MB, {watch.seconds:.1f} s")
    if as_json:
        emit_json(report)


def _check_options(target: str, is_export: bool, is_calibrated: bool) -> None:
    """What was given and would change nothing is an error, not ignored. Raises UsageError."""
    from intsr.engines.targets import target_from_name

    found, context = target_from_name(target), click.get_current_context()
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    for name in ("bits", "parts") if is_calibrated else ():
        if name in given:
            raise UsageError(given[name], "together with --calibration", "one of them: a calibration has its own")
    for name in ("calibration", "images", "bits", "parts", "tile_px", "context") if is_export else ():
        if name in given:
            raise UsageError(given[name], "together with an export folder", "a model", "give it to intsr export")
    for name, targets in TARGETS_OF_OPTION.items():
        if name in given and found.name not in targets:
            raise UsageError(given[name], f"together with --target {target}", f"target {' or '.join(targets)}")


def _export(
    model_name: str,
    target: str,
    calibration: Path | None,
    images: Path | None,
    bits: str,
    parts: str,
    tile_px: int,
    context: Path | None,
    folder: Path,
) -> None:
    from intsr.calib.model import load_model
    from intsr.engines.targets import target_from_name
    from intsr.export.lowering import lowering_from_name
    from intsr.export.onnx_export import check_tile
    from intsr.export.pipeline import export_model
    from intsr.types import Bits

    if bool(calibration) + bool(images) + (not Bits.parse(bits).quantized) != 1:
        raise UsageError(
            model_name, "no single source of ranges", "one of --calibration DIR, --images DIR, --bits fp"
        )
    model = load_model(model_name, context)
    # Before calibrating, which takes longer.
    check_tile(tile_px, model.spec.upscale_factor, model.spec.size_multiple_px)
    ranges = _ranges(model, calibration, images, bits, parts, tile_px)
    lowering = lowering_from_name(target_from_name(target).lowering)
    export_model(model, ranges, lowering, tile_px, folder, lambda name: say(f"exporting {name}"))


def _ranges(
    model: SRModel, calibration: Path | None, images: Path | None, bits: str, parts: str, tile_px: int
) -> Calibration | None:
    from intsr.calib.calibrate import Recipe, calibrate, parse_parts
    from intsr.calib.calibration import load_calibration
    from intsr.calib.pictures import list_pictures
    from intsr.types import Bits

    if calibration is not None:
        return load_calibration(calibration)
    if images is None:
        return None
    pictures = list_pictures(images)
    recipe = Recipe("maxmin+let", Bits.parse(bits), parse_parts(parts), tile_px)

    def show(batches: Any) -> Any:
        return progress(batches, "calibrating", total=len(pictures))

    return calibrate(model, pictures, recipe, show)
