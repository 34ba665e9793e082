"""`intsr compile`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from intsr.cli.console import (
    FiniteFloat,
    Stopwatch,
    TileSizes,
    common_options,
    emit_json,
    say,
    say_notes,
    weight_options,
)
from intsr.cli.several_values import SeveralValuesCommand, passionsr_option
from intsr.errors import UsageError

if TYPE_CHECKING:
    from intsr.engines.compile.request import CompileRequest

# Parameters that an export folder has answered already.
OF_MODEL = ("calibration", "images", "official", "bits", "parts", "tiles_px", "context", "lora", "verify")


@click.command(
    name="compile",
    cls=SeveralValuesCommand,
    epilog="Examples: intsr compile demo --images photos/ -o demo.engine; "
    "intsr compile demo-onnx/ --target tensorrt-rtx -o demo.rtx.engine",
)
@click.argument("source", metavar="MODEL|EXPORT")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .engine file to write.  [required]")
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
@click.option("--timing-cache", type=click.Path(path_type=Path), help="tensorrt: reuse measured kernel times.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of networks built before, used and added to.")
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Compare with torch on this folder's pictures and on smooth ones; below --min-psnr nothing is written.",
)
@click.option(
    "--min-psnr",
    "min_psnr_db",
    type=FiniteFloat(),
    help="Of --verify: of every picture, in dB.  [default: what correct engines of these bits reach]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be built, and what it takes, and stop.")
@common_options
def compile_command(
    source: str,
    output: Path | None,
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
    cache: Path | None,
    verify: Path | None,
    min_psnr_db: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build an .engine file.

    MODEL is a folder in diffusers' format, a single SD 2.1 file, owner/name@REVISION of the Hugging Face hub, or the
    word demo, with --calibration, --images, --passionsr, --activations fp16 or --bits fp; EXPORT is a folder that
    `intsr export` wrote for the same target.
    """
    from intsr.engines.builders.cache import PlanCache
    from intsr.engines.builders.types import BuildOptions
    from intsr.engines.compile.assemble import compile_engine, place_for
    from intsr.export.graphs import EXPORT_NAME
    from intsr.files import check_output_file
    from intsr.targets import target_from_name

    watch = Stopwatch()
    is_export = (Path(source) / EXPORT_NAME).is_file()
    _check_options(target, is_export, calibration is not None, bool(official))
    if not is_export:
        # What an export needs nothing of, and takes seconds to import.
        from intsr.engines.compile.request import CompileRequest, export_request, prepare
        from intsr.engines.verify.check import Check

        request = CompileRequest(
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
            activations == "fp16",
            plugins,
        )
    options = BuildOptions(
        target=target,
        workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
        hardware_compatibility=hardware_compatibility,
        timing_cache=timing_cache,
    )
    if dry_run:
        if is_export:
            raise UsageError("--dry-run", "together with an export folder", "a model: an export is done already")
        _show_plan(request, as_json)
        return
    if output is None:
        raise UsageError("-o, --output", "missing", "the .engine file to write")
    check_output_file(output)
    check = None if verify is None else Check(verify, min_psnr_db)  # never with an export: `_check_options`
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        export_folder, result = Path(source), None
        if not is_export:
            found = target_from_name(target)
            found.check_installed()
            pictures = [] if check is None else check.pictures(found)
            export_folder, prepared = Path(folder) / "onnx", prepare(request)
            say_notes(prepared.source.notes)
            ranges = export_request(prepared, export_folder)
        with place_for(output, check is not None) as place:
            manifest = compile_engine(
                export_folder,
                place,
                options,
                precision,
                lambda name: say(f"building {name} for {target}"),
                None if cache is None else PlanCache(cache, lambda name: say(f"{name}: built before, from {cache}")),
            )
            if check is not None:
                result = check.run(place, pictures, prepared.source, ranges, request.weight_only)
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
    tiles = f"tiles of {', '.join(map(str, manifest.tile_sizes))}"
    size = f"{report['size_bytes'] / 1e6:.1f} MB"
    agrees = (
        ""
        if result is None
        else f", against torch {result.end_to_end.psnr_db:.2f} dB, {result.worst[1]:.2f} at worst"
    )
    say(f"{output}: {manifest.bits} for {target}, {tiles}, {size}, {watch.seconds:.1f} s{agrees}")
    if as_json:
        if result is not None:
            networks = [*result.networks, result.end_to_end]
            report["agreement"] = {item.name: item.to_mapping() for item in networks}
            report["agreement"]["worst"] = dict(zip(("name", "psnr_db"), result.worst, strict=True))
        emit_json(report)


def _show_plan(request: CompileRequest, as_json: bool) -> None:
    from intsr.engines.compile.estimate import lines_of_plan
    from intsr.engines.compile.request import plan_of, prepare

    plan = plan_of(prepare(request))
    if as_json:
        emit_json(plan.to_mapping())
    else:
        click.echo("\n".join(lines_of_plan(plan)))


def _check_options(target: str, is_export: bool, is_calibrated: bool, is_official: bool) -> None:
    """What was given and would change nothing is an error, not ignored. Raises UsageError."""
    from intsr.targets import TARGETS, target_from_name

    found, context = target_from_name(target), click.get_current_context()
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    for name in ("bits", "parts") if is_calibrated else ():
        if name in given:
            raise UsageError(given[name], "together with --calibration", "one of them: a calibration has its own")
    if context.params["bits"] == "fp" and not is_calibrated and "parts" in given:
        raise UsageError(given["parts"], "together with --bits fp", "one of them: nothing is quantized")
    if is_official and "parts" in given:
        raise UsageError(given["parts"], "together with --passionsr", "one of them: the files given say it")
    for name in (*OF_MODEL, "activations", "plugins") if is_export else ():
        if name in given:
            raise UsageError(given[name], "together with an export folder", "a model", "give it to intsr export")
    for name, option in given.items():
        able = [each.name for each in TARGETS if name in each.compile_options]
        if able and found.name not in able:
            raise UsageError(option, f"together with --target {target}", f"target {' or '.join(able)}")
