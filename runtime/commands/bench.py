"""`intsr bench`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import common_options, detail, emit_json, on_terminal, say
from intsr.cli.options import FiniteFloat, weight_options
from intsr.errors import UsageError

if TYPE_CHECKING:
    from intsr.runtime.measure.benchmark import Entry, Measurement

_PATH = click.Path(path_type=Path)


@click.command(
    epilog="Example: intsr bench w8a8.engine --against fp32.engine --reference demo --threads 2 --markdown bench.md"
)
@click.argument("engines", type=_PATH, nargs=-1, required=True, metavar="ENGINE...")
@click.option("--against", type=_PATH, metavar="ENGINE", help="Put first: the others are compared with it.")
@click.option("--alone", is_flag=True, help="Do not look for a full-precision engine beside integer ones.")
@click.option("--reference", metavar="MODEL", help="Measure the model in torch beside them: float32, eager.")
@click.option("--size", "size_px", type=click.IntRange(1, 4096), default=128, show_default=True, help="Input pixels.")
@click.option("--threads", type=click.IntRange(1), help="For every entry. Default: as many as there are CPUs.")
@click.option("--min-seconds", type=FiniteFloat(0), default=3.0, show_default=True, help="Measured, each.")
@click.option("--min-runs", type=click.IntRange(1), default=10, show_default=True, help="Measured, each.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help="Of what is not int.")
@click.option(
    "--device",
    help="GPU engines: cuda:INDEX or a part of the GPU's name. Default: the first. Target onnxruntime: cuda, "
    "tensorrt or tensorrt-rtx, each with :INDEX. Default: the CPU.",
)
@click.option(
    "--cuda-backend",
    type=click.Choice(["cuda-python", "pycuda"]),
    default="cuda-python",
    help="GPU engines: who talks to CUDA. Default: cuda-python.",
)
@click.option("--layers", is_flag=True, help="Time by layer too, measured apart; not for target onnxruntime.")
@click.option("--csv", "csv_path", type=_PATH, metavar="FILE", help="Write one line an engine.")
@click.option("--markdown", "markdown_path", type=_PATH, metavar="FILE", help="Write tables.")
@click.option("--plot", "plot_path", type=_PATH, metavar="FILE", help="Draw stages (.png, .svg, .pdf): intsr[plot].")
@weight_options
@common_options
def bench(
    *,
    engines: tuple[Path, ...],
    against: Path | None,
    alone: bool,
    reference: str | None,
    size_px: int,
    threads: int | None,
    min_seconds: float,
    min_runs: int,
    precision: str,
    device: str | None,
    cuda_backend: str,
    layers: bool,
    csv_path: Path | None,
    markdown_path: Path | None,
    plot_path: Path | None,
    context: Path | None,
    lora: Path | None,
    as_json: bool,
) -> None:
    """Measure latency and memory of engines, end to end on one picture, interleaved in one process.

    A picture of --size x --size pixels is enlarged again and again: resize, tiles, three networks, copies to and from
    a GPU, blending and colour fix are included, files are not. Everything runs with the same number of threads. Where
    all engines are integer ones, a full-precision engine of the same model in the same folder is measured too.
    """
    from intsr.files import check_output_file
    from intsr.runtime.measure import benchmark
    from intsr.runtime.measure import report as benchmark_report
    from intsr.runtime.measure.layer_times import check_layers, layer_times_from_engine
    from intsr.runtime.measure.machine import environment

    if reference is None and (context or lora):
        option = "--lora" if lora else "--context"
        raise UsageError(option, "no model that it belongs to", "--reference MODEL too")
    if plot_path is not None:
        benchmark_report.check_plot(plot_path)
    for path in filter(None, (csv_path, markdown_path, plot_path)):
        check_output_file(path)
    threads = threads or benchmark.default_threads()
    settings = {"threads": threads, "precision": precision, "device": device, "cuda_backend": cuda_backend}
    paths = _with_counterpart([*([against] if against else []), *engines], alone or against or reference)
    for path in paths if layers else ():
        check_layers(path)
    with ExitStack() as opened:
        entries = []
        for path in paths:
            detail(f"opening {path}")
            entries.append(benchmark.entry_from_engine(path, **settings))
            opened.callback(entries[-1].upscaler.close)
        if reference is not None:
            detail(f"opening {reference} in torch")
            tile_px = entries[0].upscaler.tile_px
            entries.append(benchmark.entry_from_reference(reference, tile_px, threads, context, lora))
            opened.callback(entries[-1].upscaler.close)
        measurements = _measured(entries, size_px, min_runs, min_seconds)
    around = environment(threads, size_px)
    warnings = benchmark.warnings_from_measurements(measurements)
    relative = benchmark.relative_to_first(measurements)
    for warning in warnings:
        click.secho(f"intsr: warning: {warning}", err=True, bold=True)
    times = {}
    for path in dict.fromkeys(paths) if layers else ():
        say(f"measuring layers of {path}")
        times[str(path)] = layer_times_from_engine(path, min_runs, **settings)
    if as_json:
        values = [m.to_json() | ({"layers": times[m.path]} if m.path in times else {}) for m in measurements]
        emit_json({"engines": values, "relative_to_first": relative, "environment": around, "warnings": warnings})
    else:
        for line in benchmark_report.lines_from_measurements(measurements, relative, around):
            click.echo(line)
        for name, layer_rows in times.items():
            for line in benchmark_report.lines_from_layers(name, layer_rows):
                click.echo(line)
    # Last: a disk that is full by now takes nothing away that was measured.
    rows = benchmark_report.rows_from_measurements(measurements, relative)
    if csv_path is not None:
        benchmark_report.write_csv(csv_path, rows)
    if markdown_path is not None:
        benchmark_report.write_markdown(markdown_path, rows, around)
    if plot_path is not None:
        benchmark_report.write_plot(plot_path, rows)


def _with_counterpart(paths: list[Path], enough: Any) -> list[Path]:
    """And a full-precision engine behind integer ones, where there is one and nothing else to compare with."""
    from intsr.bundle import read_manifest
    from intsr.runtime.measure.benchmark import counterpart_of

    if enough or any(read_manifest(path).bits == "fp" for path in paths):
        return paths
    found = counterpart_of(paths[0])
    if found is None:
        say(f"no full-precision engine of the same model beside {paths[0]}: make one with intsr compile --bits fp")
        return paths
    say(f"measuring {found} beside them: full precision, the same model")
    return [*paths, found]


def _measured(entries: Sequence[Entry], size_px: int, min_runs: int, min_seconds: float) -> list[Measurement]:
    """With a progress bar on stderr where that is a terminal."""
    from intsr.runtime.measure.benchmark import bench_picture, measure

    picture = bench_picture(size_px)
    say(f"measuring {len(entries)} on a {size_px}x{size_px} picture")
    if not on_terminal():
        return measure(entries, picture, min_runs, min_seconds)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Measuring", total=1.0)
        return measure(entries, picture, min_runs, min_seconds, lambda share: bar.update(task, completed=share))
