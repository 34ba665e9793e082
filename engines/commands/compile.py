"""`intsr compile`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from intsr.console import Stopwatch, TileSizes, common_options, emit_json, progress, say, weight_options
from intsr.errors import UsageError
from intsr.several_values import SeveralValuesCommand, passionsr_option

if TYPE_CHECKING:
    from intsr.calib.calibration import Calibration
    from intsr.calib.model import ModelSource
    from intsr.engines.targets import Target
    from intsr.types import ModelSpec

TENSORRT = ("tensorrt", "tensorrt-rtx")
# Parameters that an export folder has answered already.
OF_MODEL = ("calibration", "images", "official", "bits", "parts", "tiles_px", "context", "lora")
TARGETS_OF_OPTION = {
    "activations": TENSORRT,
    "plugins": ("tensorrt",),
    "precision": ("cpu",),
    "workspace_mib": TENSORRT,
    "hardware_compatibility": TENSORRT,
    "timing_cache": TENSORRT,
}


@click.command(
    name="compile",
    cls=SeveralValuesCommand,
    epilog="Examples: intsr compile demo --images photos/ -o demo.engine; "
    "intsr compile demo-onnx/ --target tensorrt-rtx -o demo.rtx.engine",
)
@click.argument("source", metavar="MODEL|EXPORT")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .engine file to write.")
@click.option("--target", default="cpu", show_default=True, help="cpu, onnxruntime, tensorrt or tensorrt-rtx.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Calibration folder.")
@click.option("--images", type=click.Path(path_type=Path), help="Calibrate on these first, in one pass.")
@click.option("--bits", default="w8a8", show_default=True, help="With --images, --passionsr: wXaY; or fp.")
@click.option("--parts", default="unet,vae", show_default=True, help="With --images: what is quantized.")
@passionsr_option
@click.option(
    "--tile",
    "tiles_px",
    type=TileSizes(),
    metavar="PX[,PX]",
    help="Sides of the low-resolution tiles, the default first.  [default: 128,64 with --target cpu, else 128]",
)
@weight_options
@click.option(
    "--activations",
    type=click.Choice(["integer", "fp16"]),
    default="integer",
    show_default=True,
    help="tensorrt, tensorrt-rtx: fp16 for integer weights alone; then no calibration is needed.",
)
@click.option(
    "--plugins",
    type=click.Choice(["group-norm"]),
    multiple=True,
    help="tensorrt: operators that run with kernels of IntSR's own; needs nvcc while compiling.",
)
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
    official: tuple[Path, ...],
    tiles_px: tuple[int, ...] | None,
    context: Path | None,
    lora: Path | None,
    activations: str,
    plugins: tuple[str, ...],
    precision: str | None,
    workspace_mib: int | None,
    hardware_compatibility: str,
    timing_cache: Path | None,
    as_json: bool,
) -> None:
    """Build an .engine file.

    MODEL is a folder in diffusers' format, a single SD 2.1 file, owner/name@REVISION of the Hugging Face hub, or the
    word demo, with --calibration, --images, --passionsr, --activations fp16 or --bits fp; EXPORT is a folder that
    `intsr export` wrote for the same target.
    """
    from intsr.engines.build_types import BuildOptions
    from intsr.engines.compiler import compile_engine
    from intsr.export.onnx_export import EXPORT_NAME
    from intsr.files import check_output_file

    watch = Stopwatch()
    is_export = (Path(source) / EXPORT_NAME).is_file()
    _check_options(target, is_export, calibration is not None, bool(official))
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
            _export(
                source,
                target,
                calibration,
                images,
                official,
                bits,
                parts,
                tiles_px,
                context,
                lora,
                activations,
                plugins,
                export_folder,
            )
        manifest = compile_engine(
            export_folder, output, options, precision, lambda name: say(f"building {name} for {target}")
        )
    report: dict[str, Any] = {
        "output": str(output),
        "size_bytes": output.stat().st_size,
        "seconds": round(watch.seconds, 3),
        "target": target,
        "bits": manifest.bits,
        "tile_px": list(manifest.tile_sizes),
        "networks": {
            name: {"kernels": plan.get("kernels"), "int8_mac_share": plan.get("int8_mac_share")}
            for name, plan in manifest.build["plans"].items()
        },
    }
    say(f"{output}: {manifest.bits} for {target}, {report['size_bytes'] / 1e6:.1f} MB, {watch.seconds:.1f} s")
    if as_json:
        emit_json(report)


def _check_options(target: str, is_export: bool, is_calibrated: bool, is_official: bool) -> None:
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
    if is_official and "parts" in given:
        raise UsageError(given["parts"], "together with --passionsr", "one of them: the files given say it")
    for name in (*OF_MODEL, "activations", "plugins") if is_export else ():
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
    official: tuple[Path, ...],
    bits: str,
    parts: str,
    tiles_px: tuple[int, ...] | None,
    context: Path | None,
    lora: Path | None,
    activations: str,
    plugins: tuple[str, ...],
    folder: Path,
) -> None:
    from intsr.calib.calibrate import parse_parts
    from intsr.calib.model import open_model
    from intsr.calib.official_calibration import check_one_tile
    from intsr.engines.targets import target_from_name
    from intsr.export.lowering import lowering_from_name
    from intsr.export.pipeline import export_model
    from intsr.export.weight_only import static_calibration
    from intsr.types import Bits

    weight_only = activations == "fp16"
    sources = bool(calibration) + bool(images) + bool(official) + (not Bits.parse(bits).quantized)
    if sources != 1 and not (weight_only and sources == 0):
        raise UsageError(
            model_name,
            "no single source of ranges",
            "one of --calibration DIR, --images DIR, --passionsr UNET.pth [VAE.pth], --bits fp",
        )
    source = open_model(model_name, context, lora)
    found = target_from_name(target)
    # Before calibrating, which takes longer.
    tile_px, *further = _checked_tiles(tiles_px, found, source.spec)
    ranges = _ranges(source, calibration, images, official, bits, parts, tile_px)
    if ranges is not None and ranges.official_layers:
        # It fits one size only: no further ones unless they were asked for, which is an error.
        further = further if tiles_px is not None else []
        check_one_tile(ranges, [tile_px, *further])
    if weight_only and ranges is None and Bits.parse(bits).quantized:
        ranges = static_calibration(source, Bits.parse(bits), parse_parts(parts), tile_px)
    name = (found.weight_only_lowering if weight_only else None) or found.lowering
    lowering = lowering_from_name(name, plugins)
    export_model(source, ranges, lowering, tile_px, folder, lambda name: say(f"exporting {name}"), further)


def _checked_tiles(given: tuple[int, ...] | None, target: Target, spec: ModelSpec) -> tuple[int, ...]:
    """What was asked for, else the target's own as far as the networks take them. Raises UsageError."""
    from intsr.export.onnx_export import check_tile, tile_step

    first, *further = given or target.tiles
    if given is None:
        step = tile_step(spec.upscale_factor, spec.size_multiple_px)
        further = [tile for tile in further if tile % step == 0]
    for tile in (first, *further):
        check_tile(tile, spec.upscale_factor, spec.size_multiple_px)
    return (first, *further)


def _ranges(
    source: ModelSource,
    calibration: Path | None,
    images: Path | None,
    official: tuple[Path, ...],
    bits: str,
    parts: str,
    tile_px: int,
) -> Calibration | None:
    from intsr.calib.calibrate import Recipe, calibrate, parse_parts
    from intsr.calib.calibration import load_calibration
    from intsr.calib.official_calibration import import_official
    from intsr.calib.pictures import list_pictures
    from intsr.types import Bits

    if calibration is not None:
        return load_calibration(calibration)
    if official:
        return import_official(source.load(), official, Bits.parse(bits), tile_px)
    if images is None:
        return None
    pictures = list_pictures(images)
    recipe = Recipe("maxmin+let", Bits.parse(bits), parse_parts(parts), tile_px)

    def show(batches: Any) -> Any:
        return progress(batches, "calibrating", total=len(pictures))

    return calibrate(source.load(), pictures, recipe, show)
