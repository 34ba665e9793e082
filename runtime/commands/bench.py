"""`intsr bench`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.console import common_options, detail, emit_json, say

if TYPE_CHECKING:
    from intsr.runtime.benchmark import Measurement

_PATH = click.Path(path_type=Path)
_COLUMNS = ("median_ms", "mean_ms", "p90_ms", "p99_ms", "min_ms", "max_ms", "images_per_s", "output_megapixels_per_s")


@click.command(epilog="Example: intsr bench w8a8.engine fp32.engine --reference demo --threads 2")
@click.argument("engines", type=_PATH, nargs=-1, required=True, metavar="ENGINE...")
@click.option("--reference", metavar="MODEL", help="Measure the model in torch beside them: float32, eager.")
@click.option("--size", "size_px", type=click.IntRange(1, 4096), default=128, show_default=True, help="Input pixels.")
@click.option("--threads", type=click.IntRange(1), help="For every entry. Default: as many as there are CPUs.")
@click.option("--min-seconds", type=click.FloatRange(0), default=3.0, show_default=True, help="Measured, each.")
@click.option("--min-runs", type=click.IntRange(1), default=10, show_default=True, help="Measured, each.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help="Of what is not int.")
@common_options
def bench(
    engines: tuple[Path, ...],
    reference: str | None,
    size_px: int,
    threads: int | None,
    min_seconds: float,
    min_runs: int,
    precision: str,
    as_json: bool,
) -> None:
    """Measure latency and memory of engines, end to end on one picture, interleaved in one process.

    A picture of --size x --size pixels is enlarged again and again: resize, tiles, three networks, blending and
    colour fix are included, files are not. Everything runs with the same number of threads.
    """
    from intsr.runtime import benchmark

    threads = threads or benchmark.default_threads()
    with ExitStack() as opened:
        entries = []
        for path in engines:
            detail(f"opening {path}")
            entries.append(benchmark.entry_from_engine(path, threads, precision))
            opened.callback(entries[-1].upscaler.close)
        if reference is not None:
            detail(f"opening {reference} in torch")
            tile_px = entries[0].upscaler.tile_px
            entries.append(benchmark.entry_from_reference(reference, tile_px, threads))
            opened.callback(entries[-1].upscaler.close)
        measurements = _measured(entries, size_px, min_runs, min_seconds)
    environment = benchmark.environment(threads, size_px)
    warnings = benchmark.warnings_from_measurements(measurements)
    relative = benchmark.relative_to_first(measurements)
    for warning in warnings:
        click.secho(f"intsr: warning: {warning}", err=True, bold=True)
    if as_json:
        emit_json(
            {
                "engines": [measurement.to_json() for measurement in measurements],
                "relative_to_first": relative,
                "environment": environment,
                "warnings": warnings,
            }
        )
    else:
        _print_table(measurements, relative, environment)


def _measured(entries: Sequence[Any], size_px: int, min_runs: int, min_seconds: float) -> list[Measurement]:
    """With a progress bar on stderr where that is a terminal."""
    import sys

    from intsr.runtime.benchmark import bench_picture, measure

    picture = bench_picture(size_px)
    say(f"measuring {len(entries)} on a {size_px}x{size_px} picture")
    if not sys.stderr.isatty():
        return measure(entries, picture, min_runs, min_seconds)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Measuring", total=1.0)
        return measure(entries, picture, min_runs, min_seconds, lambda share: bar.update(task, completed=share))


def _print_table(
    measurements: Sequence[Measurement], relative: Sequence[dict[str, Any]], environment: dict[str, Any]
) -> None:
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    click.echo(f"{environment['cpu']}, {environment['threads']} threads; {libraries}")
    click.echo(f"Included: {environment['included']}.")
    for measurement, ratio in zip(measurements, relative, strict=True):
        numbers = measurement.to_json()
        click.echo(f"\n{measurement.path} ({measurement.target}, {measurement.bits}, {measurement.precision})")
        click.echo("  " + "  ".join(f"{column} {numbers[column]:.2f}" for column in _COLUMNS))
        stages = "  ".join(f"{stage} {ms:.2f}" for stage, ms in measurement.stages_ms.items())
        click.echo(f"  stages_ms: {stages}")
        click.echo(f"  {measurement.runs} runs, variation {measurement.variation_percent:.1f} %, ", nl=False)
        click.echo(f"{ratio['speedup']:.2f} times as fast as the first")
    peak_mib = measurements[-1].peak_process_bytes / 2**20
    click.echo(f"\nPeak memory of the process, everything open: {peak_mib:.0f} MiB.")
