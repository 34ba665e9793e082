"""`intsr report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH, weight_options


@click.command(
    epilog="Example: intsr report demo-w8a8 w8a8.engine fp.engine --images lr/ --hr hr/ --bench bench.json",
    short_help="One HTML file: pictures side by side, errors, layers, curves, times.",
)
@click.argument("sources", type=PATH, nargs=-1, metavar="[CALIBRATION|ENGINE]...")
@click.option("--images", type=PATH, help="Low-resolution pictures, a folder or one: all engines upscale them.")
@click.option("--hr", type=PATH, metavar="DIR", help="Their originals, of the same names: PSNR-Y and SSIM.")
@click.option("--outputs", multiple=True, metavar="NAME=DIR", help="Finished pictures to compare; may be repeated.")
@click.option("--reference", metavar="NAME", help="What the others are compared with. Default: the first fp engine.")
@click.option("--model", help="The calibration's model: measures every layer (histograms, SQNR, outliers).")
@click.option("--calibration-images", type=PATH, metavar="DIR", help="Shown, and what layers are measured on.")
@click.option("--bench", multiple=True, type=PATH, metavar="FILE", help="Of intsr bench --json; may be repeated.")
@click.option("--limit", default=24, show_default=True, type=click.IntRange(1), help="At most so many pictures.")
@click.option("--shown", default=6, show_default=True, type=click.IntRange(1), help="With a slider: the worst ones.")
@click.option("--overlap", "overlap_px", type=click.IntRange(0), help="Of tiles, pixels. Default: each engine's.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help="Of what is not int.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engines.")
@click.option("-o", "--output", type=PATH, default=Path("report.html"), show_default=True)
@weight_options
@common_options
def report(
    *,
    sources: tuple[Path, ...],
    outputs: tuple[str, ...],
    bench: tuple[Path, ...],
    output: Path,
    as_json: bool,
    **rest: Any,
) -> None:
    """Write one self-contained HTML file about a calibration, engines, finished pictures, or all of them.

    With --images, every engine upscales the pictures, and a slider compares low resolution, full precision and
    integers. With --model, the layers of the calibration are measured. The page needs no network and shows only what
    data was given for.
    """
    from intsr.engines.report.build import build_report
    from intsr.engines.report.measure.request import (
        ReportRequest,
        bench_from_file,
        outputs_from_options,
        sources_from_paths,
    )
    from intsr.errors import EXIT_SOME_FAILED
    from intsr.files import check_output_file

    calibration, engines = sources_from_paths(sources)
    request = ReportRequest(
        calibration=calibration,
        engines=engines,
        outputs=outputs_from_options(outputs),
        bench=tuple(bench_from_file(path) for path in bench),
        **rest,
    )
    check_output_file(output)
    facts = build_report(request, output)
    say(f"{output}: {facts['size_bytes'] / 1e6:.2f} MB, {facts['seconds']:.0f} s")
    if as_json:
        emit_json(facts)
    if facts.get("pictures", {}).get("skipped"):
        click.get_current_context().exit(EXIT_SOME_FAILED)
