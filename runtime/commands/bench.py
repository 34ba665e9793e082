"""`intsr bench`."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import common_options, detail, duration, emit_json, on_terminal, say, tell
from intsr.cli.options import FiniteFloat, weight_options
from intsr.errors import EXIT_INTERRUPTED
from intsr.types import WeightOptions

if TYPE_CHECKING:
    from intsr.runtime.measure.benchmark import Entry
    from intsr.runtime.measure.measurement import Measurement

_PATH = click.Path(path_type=Path)
_MOST_PX = 4096
# Without a terminal, progress is said so often.
_SAY_EVERY_S = 30.0


class _Sizes(click.ParamType[tuple[tuple[int, int], ...]]):
    """Sizes of pictures, as in `128` or `128,1024x768`: width and height each."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        sizes = []
        for text in str(value).lower().split(","):
            sides = text.strip().split("x")
            if len(sides) > 2 or not all(
                re.fullmatch(r"0*[1-9][0-9]{0,3}", side) and int(side) <= _MOST_PX for side in sides
            ):
                self.fail(
                    f"{text.strip()!r} is no size from 1 to {_MOST_PX}, for example 128 or 1024x768", param, ctx
                )
            sizes.append((int(sides[0]), int(sides[-1])))
        return tuple(dict.fromkeys(sizes))


@click.command(
    epilog="Example: intsr bench w8a8.engine --against fp32.engine --reference demo --threads 2 --markdown bench.md"
)
@click.argument("engines", type=_PATH, nargs=-1, required=True, metavar="ENGINE...")
@click.option("--against", type=_PATH, metavar="ENGINE", help="Put first: the others are compared with it.")
@click.option("--alone", is_flag=True, help="Do not look for a full-precision engine beside integer ones.")
@click.option("--reference", metavar="MODEL", help="Measure the model in torch beside them: float32, eager.")
@click.option(
    "--size",
    "sizes",
    type=_Sizes(),
    default="128",
    show_default=True,
    metavar="PX|WxH,...",
    help="Input pixels; several, separated by commas, are measured one after the other.",
)
@click.option("--threads", type=click.IntRange(1), help="For every entry. Default: as many as there are CPUs.")
@click.option("--min-seconds", type=FiniteFloat(0), default=3.0, show_default=True, help="Measured, each.")
@click.option("--min-runs", type=click.IntRange(1), help="Measured, each. Default: 10; 3 where one takes over 4 s.")
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
@click.option("--csv", "csv_path", type=_PATH, metavar="FILE", help="Write one line an engine and size.")
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
    sizes: tuple[tuple[int, int], ...],
    threads: int | None,
    min_seconds: float,
    min_runs: int | None,
    precision: str,
    device: str | None,
    cuda_backend: str,
    layers: bool,
    csv_path: Path | None,
    markdown_path: Path | None,
    plot_path: Path | None,
    weights: WeightOptions,
    as_json: bool,
) -> None:
    """Measure latency and memory of engines, end to end on one picture, interleaved in one process.

    A picture of --size pixels is enlarged again and again, with video engines a chunk of frames: resize, tiles,
    networks, copies to and from a GPU, blending and colour fix are included, files are not. Everything runs with the
    same number of threads. Where all engines are integer ones, a full-precision engine of the same model in the same
    folder is measured too. Ctrl-C ends it with what was measured so far.
    """
    from intsr.files import check_output_file
    from intsr.runtime.measure import benchmark
    from intsr.runtime.measure import report as benchmark_report
    from intsr.runtime.measure.layer_times import check_layers, layer_times_from_engine
    from intsr.runtime.measure.machine import environment
    from intsr.runtime.measure.measurement import relative_to_first, warnings_from_measurements

    weights.check_belongs(reference is not None, "--reference")
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
        frames = benchmark.frames_of_entries(entries)
        if reference is not None:
            detail(f"opening {reference} in torch")
            tile_px = entries[0].upscaler.tile_px
            entries.append(benchmark.entry_from_reference(reference, tile_px, threads, weights, frames=frames))
            opened.callback(entries[-1].upscaler.close)
        measurements, interrupted = _all_measured(entries, sizes, min_runs, min_seconds)
        # From here to the results a Ctrl-C would lose them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        click.get_current_context().call_on_close(partial(signal.signal, signal.SIGINT, before))
    around = environment(threads, sizes[0])
    warnings = warnings_from_measurements(measurements)
    relative = relative_to_first(measurements)
    for warning in warnings:
        click.secho(f"intsr: warning: {warning}", err=True, bold=True)
    times = {}
    for path in dict.fromkeys(paths) if layers and not interrupted else ():
        signal.signal(signal.SIGINT, before)
        say(f"measuring layers of {path}")
        times[str(path)] = layer_times_from_engine(path, min_runs or benchmark.DEFAULT_RUNS, **settings)
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
    if interrupted:
        tell("intsr: these are the results so far")
        sys.exit(EXIT_INTERRUPTED)


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


def _all_measured(
    entries: Sequence[Entry], sizes: Sequence[tuple[int, int]], min_runs: int | None, min_seconds: float
) -> tuple[list[Measurement], bool]:
    """The measurements at every size, and whether Ctrl-C ended them."""
    from intsr.runtime.measure.benchmark import InterruptedMeasurement

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell leaves it to what it starts in its background: who sends it there means it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    measurements: list[Measurement] = []
    for size in sizes:
        try:
            measurements += _measured(entries, size, min_runs, min_seconds)
        except InterruptedMeasurement as interrupt:
            return [*measurements, *interrupt.measurements], True
        except KeyboardInterrupt:
            if not measurements:
                raise
            return measurements, True
    return measurements, False


def _measured(
    entries: Sequence[Entry], size: tuple[int, int], min_runs: int | None, min_seconds: float
) -> list[Measurement]:
    """With a progress bar on stderr where that is a terminal, else a line now and then."""
    from intsr.runtime.measure.benchmark import bench_clip, bench_picture, frames_of_entries, measure

    frames = frames_of_entries(entries)
    picture = bench_picture(*size) if frames is None else bench_clip(frames, *size)
    what = "picture" if frames is None else f"chunk of {frames} frames"
    say(f"measuring {len(entries)} on a {size[0]}x{size[1]} {what}")
    if not on_terminal():
        said = time.monotonic()

        def told(share: float, left_s: float) -> None:
            nonlocal said
            if share == 0:
                say(f"warm; about {duration(left_s)} to go")
            elif share < 1 and time.monotonic() - said >= _SAY_EVERY_S:
                said = time.monotonic()
                say(f"{share:.0%} measured, about {duration(left_s)} left")

        return measure(entries, picture, min_runs, min_seconds, told)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Warming up", total=1.0)

        def shown(share: float, left_s: float) -> None:
            bar.update(task, completed=share, description=f"Measuring, about {duration(left_s)} left")

        return measure(entries, picture, min_runs, min_seconds, shown)
