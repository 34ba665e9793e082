"""`intsr verify`."""

from __future__ import annotations

from pathlib import Path

import click

from intsr.console import common_options, emit_json, progress, say, weight_options
from intsr.types import SYNTHETIC_NOTE


@click.command(epilog="Example: intsr verify demo.engine --against demo-w8a8 --model demo --images photos/")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--against", required=True, help="Calibration folder (fake-quantized torch), or model (full precision)."
)
@click.option("--model", help="With a calibration: the model it was made for.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of low-resolution pictures.")
@click.option("--min-psnr", "min_psnr_db", default=30.0, show_default=True, help="End to end, in dB: fail below.")
@click.option("--limit", default=4, show_default=True, type=click.IntRange(1), help="At most so many pictures.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--tile", "tile_px", type=click.IntRange(1), help="One of the engine's tile sizes, else its default.")
@weight_options
@common_options
def verify(
    engine: Path,
    against: str,
    model: str | None,
    images: Path,
    min_psnr_db: float,
    limit: int,
    precision: str,
    threads: int | None,
    tile_px: int | None,
    context: Path | None,
    lora: Path | None,
    as_json: bool,
) -> None:
    """Compare an engine with torch: each network on the same input, and all three in a row."""
    from intsr.calib.pictures import calibration_inputs, list_pictures
    from intsr.calib.torch_engine import reference_for_verification
    from intsr.engines.verify import verify as run
    from intsr.errors import VerificationError
    from intsr.export.onnx_export import is_weight_only
    from intsr.runtime.engine import open_engine

    pictures = list_pictures(images)[:limit]
    with open_engine(engine, threads=threads, precision=precision, tile_px=tile_px) as opened:
        tile_px, synthetic = opened.tile_px, opened.manifest.synthetic
        digest, floats = opened.manifest.calibration_digest, is_weight_only(opened.manifest.bits)
        reference, spec = reference_for_verification(against, model, context, lora, tile_px, digest, floats)
        inputs = calibration_inputs(progress(pictures, "verifying"), spec, tile_px)
        result = run(opened, reference, inputs)
    passed = result.end_to_end.psnr_db >= min_psnr_db
    for item in (*result.networks, result.end_to_end):
        say(f"{item.name:<10} {item.psnr_db:7.2f} dB   max abs error {item.max_abs_error:.3g}")
    worst = min(result.per_image_db, key=lambda name: result.per_image_db[name])
    say(f"worst picture: {worst}, {result.per_image_db[worst]:.2f} dB")
    if synthetic:
        say(SYNTHETIC_NOTE)
    if passed:
        say(f"passed: {result.end_to_end.psnr_db:.2f} dB, at least {min_psnr_db:g} wanted")
    if as_json:
        emit_json(
            {
                "networks": [item.to_mapping() for item in result.networks],
                "end_to_end": result.end_to_end.to_mapping(),
                "per_image_db": {name: round(value, 2) for name, value in result.per_image_db.items()},
                "min_psnr_db": min_psnr_db,
                "passed": passed,
                **({"synthetic": True, "note": SYNTHETIC_NOTE} if synthetic else {}),
            }
        )
    if not passed:
        got = f"{result.end_to_end.psnr_db:.2f} dB end to end against {against}"
        raise VerificationError(engine, got, f"at least {min_psnr_db:g}", "look at each network, or lower --min-psnr")
