"""`intsr verify`."""

from __future__ import annotations

from pathlib import Path

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH, FiniteFloat, weight_options
from intsr.types import SYNTHETIC_NOTE, WeightOptions


@click.command(epilog="Example: intsr verify demo.engine --against demo-w8a8 --model demo --images photos/")
@click.argument("engine", type=PATH)
@click.option(
    "--against", required=True, help="Calibration folder (fake-quantized torch), or model (full precision)."
)
@click.option("--model", help="With a calibration: the model it was made for.")
@click.option(
    "--images", type=PATH, required=True, help="Folder of low-resolution pictures, or of films for a video engine."
)
@click.option(
    "--min-psnr",
    "min_psnr_db",
    type=FiniteFloat(),
    help="Of every picture or frame, end to end, in dB: fail below.  [default: what correct engines of these bits "
    "reach]",
)
@click.option("--limit", default=4, show_default=True, type=click.IntRange(1), help="At most so many of them.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--tile", "tile_px", type=click.IntRange(1), help="One of the engine's tile sizes, else its default.")
@weight_options
@common_options
def verify(
    *,
    engine: Path,
    against: str,
    model: str | None,
    images: Path,
    min_psnr_db: float | None,
    limit: int,
    precision: str,
    threads: int | None,
    tile_px: int | None,
    weights: WeightOptions,
    as_json: bool,
) -> None:
    """Compare an engine with torch: each network on the same input, and all three in a row.

    On your pictures, and on smooth and flat ones made for it, which hide nothing. Every one of them must pass. A
    video engine is shown a chunk of each film, pictures as films that stand still, and every frame must pass.
    """
    from intsr.bundle import read_manifest
    from intsr.engines.inspect.calibration import clipped_lines
    from intsr.engines.verify.agreement import check_agreement
    from intsr.engines.verify.check import list_shown, verify_engine
    from intsr.engines.verify.reference import reference_for_verification
    from intsr.export.graphs import is_weight_only
    from intsr.runtime.engine import open_engine

    chunk = read_manifest(engine).chunk
    if chunk is not None:
        weights.check_of_video()
    shown = list_shown(images, chunk is not None)[:limit]
    with open_engine(engine, threads=threads, precision=precision, tile_px=tile_px) as opened:
        manifest = opened.manifest
        reference, spec = reference_for_verification(
            against,
            model,
            weights=weights,
            tile_px=opened.tile_px,
            calibration_digest=manifest.calibration_digest,
            weight_only=is_weight_only(manifest.bits),
            frames=None if chunk is None else chunk.frames,
        )
        result, bound_db = verify_engine(opened, reference, spec, shown, min_psnr_db)
    kind = "picture" if chunk is None else "frame"
    for item in (*result.networks, result.end_to_end):
        say(f"{item.name:<11} {item.psnr_db:7.2f} dB   max abs error {item.max_abs_error:.3g}")
    name, worst_db = result.worst
    worst = f"worst {kind}: {name}, {worst_db:.2f} dB; at least {bound_db:g} wanted"
    for line in (*result.metric_lines, worst, *clipped_lines(Path(against))):
        say(line)
    if manifest.synthetic:
        say(SYNTHETIC_NOTE)
    if worst_db >= bound_db:
        say(f"passed: all {len(result.per_image_db)} {kind}s")
    if as_json:
        emit_json(
            {
                "networks": [item.to_mapping() for item in result.networks],
                "end_to_end": result.end_to_end.to_mapping(),
                **({"metrics": result.metrics} if result.metrics else {}),
                "per_image_db": {name: round(value, 2) for name, value in result.per_image_db.items()},
                "min_psnr_db": bound_db,
                "passed": worst_db >= bound_db,
                **({"synthetic": True, "note": SYNTHETIC_NOTE} if manifest.synthetic else {}),
            }
        )
    check_agreement(result, bound_db, engine, "look at each network, or lower --min-psnr")
