"""Measurements as people and other programs read them: text, CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intsr.errors import UsageError
from intsr.files import atomic_path
from intsr.optional import require
from intsr.runtime.measure.layer_times import totals_by_kind
from intsr.runtime.measure.measurement import Measurement

_LATENCIES = ("median_ms", "mean_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms")
_RATES = ("images_per_s", "output_megapixels_per_s")
# Headings of the table -> keys. Of a film they are frames.
_RATE = "images/s"
_COLUMNS = {
    "median ms": "median_ms",
    "p90 ms": "p90_ms",
    "p99 ms": "p99_ms",
    "variation %": "variation_percent",
    _RATE: "images_per_s",
    "networks ms": "networks_ms",
    "transfers ms": "transfers_ms",
    "times first": "speedup",
}
_SLOWEST = 15
_NAME_CHARACTERS = 60
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

Rows = Sequence[Mapping[str, Any]]


def rows_from_measurements(measurements: Sequence[Measurement], relative: Rows) -> list[dict[str, Any]]:
    """One flat mapping an engine: every number of the measurement, stages as `stage_NAME_ms`, and `speedup`."""
    rows = []
    for measurement, ratio in zip(measurements, relative, strict=True):
        values = measurement.to_json()
        stages = {f"stage_{name}_ms": ms for name, ms in values.pop("stages_ms").items()}
        rows.append({**values, **stages, "speedup": ratio["speedup"]})
    return rows


def write_csv(path: Path, rows: Rows) -> None:
    """One line an engine and size; what there is none of is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "input_px": "{}x{}".format(*row["input_px"])} for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def write_markdown(path: Path, rows: Rows, environment: Mapping[str, Any]) -> None:
    """For each size two tables, latency and stages, with what a reader needs to believe them."""
    lines = list(_environment_lines(environment))
    for input_px in dict.fromkeys(tuple(row["input_px"]) for row in rows):
        lines += _tables([row for row in rows if tuple(row["input_px"]) == input_px])
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tables(rows: Rows) -> Iterator[str]:
    yield from ("", f"{_picture(rows[0])}:", "")
    columns = ("frames/s" if name == _RATE and rows[0]["chunk_frames"] else name for name in _COLUMNS)
    yield _table_line(["engine", "target", "bits", *columns])
    yield _table_line(["---"] * 3 + ["---:"] * len(_COLUMNS))
    for row in rows:
        names = [Path(row["path"]).name, row["target"], f"{row['bits']} {row['precision']}"]
        yield _table_line([*names, *(_number(row[key]) for key in _COLUMNS.values())])
    memory = {"engine file": "engine_bytes", "process, opening": "opened_bytes", "device": "peak_device_bytes"}
    for heading, keys, show in (
        ("stage, ms", _stages(rows), _number),
        ("memory, MiB", memory, _mebibytes),
    ):
        yield from ("", _table_line([heading, *(Path(row["path"]).name for row in rows)]))
        yield _table_line(["---"] + ["---:"] * len(rows))
        yield from (_table_line([name, *(show(row[key]) for row in rows)]) for name, key in keys.items())


def _stages(rows: Rows) -> dict[str, str]:
    """Stage -> its key, in the order in which they run."""
    keys = [key for key in rows[0] if key.startswith("stage_")]
    return {key.removeprefix("stage_").removesuffix("_ms"): key for key in keys}


def _picture(row: Mapping[str, Any]) -> str:
    """row: of a `Measurement`, what was measured."""
    (width_px, height_px), tiles, frames = row["input_px"], row["tiles"], row["chunk_frames"]
    what = f"a chunk of {frames} frames, {row['shared_frames']} of them shared," if frames else "a picture"
    return f"{what} of {width_px}x{height_px}, {tiles} {'tile' if tiles == 1 else 'tiles'}"


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f}"


def _environment_lines(environment: Mapping[str, Any]) -> Iterator[str]:
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    yield f"{environment['cpu']}, {environment['threads']} threads; {libraries}; {environment['date']}"
    for gpu in environment["gpus"]:
        yield "GPU " + ", ".join(f"{key} {value}" for key, value in gpu.items())
    yield f"Included: {environment['included']}."


def lines_from_measurements(measurements: Sequence[Measurement], relative: Rows, environment: Any) -> Iterator[str]:
    """For the terminal."""
    yield from _environment_lines(environment)
    for measurement, ratio in zip(measurements, relative, strict=True):
        numbers = measurement.to_json()
        device = f", {measurement.device}" if measurement.device else ""
        yield f"\n{measurement.path} ({measurement.target}, {measurement.bits}, {measurement.precision}{device})"
        yield f"  {_picture(numbers)}"
        yield "  " + "  ".join(f"{column} {numbers[column]:.2f}" for column in (*_LATENCIES, *_RATES))
        yield "  stages_ms: " + "  ".join(f"{stage} {ms:.2f}" for stage, ms in measurement.stages_ms.items())
        yield f"  networks alone {measurement.networks_ms:.2f} ms, {_transfers(measurement)}"
        sizes = {"engine file": "engine_bytes", "process grew by": "opened_bytes", "device": "peak_device_bytes"}
        known = {name: numbers[key] for name, key in sizes.items() if numbers[key] is not None}
        yield "  " + ", ".join(f"{name} {_mebibytes(size_bytes)} MiB" for name, size_bytes in known.items())
        yield (
            f"  {measurement.runs} runs, variation {measurement.variation_percent:.1f} %, "
            f"{ratio['speedup']:.2f} times as fast as the first"
        )
    peak_mib = measurements[-1].peak_process_bytes / 2**20
    yield f"\nPeak memory of the process, everything open: {peak_mib:.0f} MiB."


def _transfers(measurement: Measurement) -> str:
    if measurement.transfers_ms is None:
        return "no copies to a device"
    graphs = "as CUDA graphs" if measurement.cuda_graphs else "kernel by kernel, without CUDA graphs"
    clock = "" if measurement.clock_mhz is None else f"; {measurement.clock_mhz:.0f} MHz after warming up"
    return f"copies to and from the GPU beside them {measurement.transfers_ms:.2f} ms; {graphs}{clock}"


def lines_from_layers(path: str, rows: Rows) -> Iterator[str]:
    """The slowest layers, and time by kind of layer."""
    total_ms = sum(row["ms"] for row in rows)
    yield f"\n{path}: {len(rows)} layers, {total_ms:.2f} ms a tile, measured apart"
    for row in sorted(rows, key=lambda row: float(row["ms"]), reverse=True)[:_SLOWEST]:
        what = " ".join(filter(None, (row["kind"], row["implementation"])))
        yield f"  {row['ms']:8.3f} ms {row['share']:6.1%}  {row['network']} {row['name'][:_NAME_CHARACTERS]}  {what}"
    for total in totals_by_kind(rows)[:_SLOWEST]:
        what = " ".join(filter(None, (total["kind"], total["implementation"]))) or "all"
        yield f"  {total['ms']:8.3f} ms {total['share']:6.1%}  {total['layers']} x {what}"


def check_plot(path: Path) -> None:
    """Before anything is measured. Raises MissingLibraryError naming the extra, UsageError for another suffix."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError("--plot", path.name, f"a name that ends in {', '.join(PLOT_SUFFIXES)}")
    require("matplotlib", "bench --plot")


def write_plot(path: Path, rows: Rows) -> None:
    """Median latency by stage, one bar an engine, with its p99."""
    # No pyplot: it would look for a screen.
    matplotlib_figure = require("matplotlib.figure", "bench --plot")
    figure = matplotlib_figure.Figure(figsize=(9, 1.5 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{Path(row['path']).name}\n{row['target']} {row['bits']}" for row in rows]
    if len({tuple(row["input_px"]) for row in rows}) > 1:
        names = [f"{name}, {row['input_px'][0]}x{row['input_px'][1]}" for name, row in zip(names, rows, strict=True)]
    left = [0.0] * len(rows)
    for stage, key in _stages(rows).items():
        widths = [row[key] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.plot([row["median_ms"] for row in rows], range(len(rows)), "k|", markersize=16, label="median, end to end")
    axes.plot([row["p99_ms"] for row in rows], range(len(rows)), "kx", label="p99, end to end")
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms a chunk of frames" if rows[0]["chunk_frames"] else "ms a picture")
    figure.legend(loc="outside upper center", ncols=5, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
