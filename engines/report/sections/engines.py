"""Everything that a report says and shows of engines: what they are, what they cost, what runs on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intsr.engines.inspect.engine import inspect_engine
from intsr.engines.report.measure.layer_names import reason_of_engine_layer
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.plots import engines as plots
from intsr.engines.report.sections import Section

MEASURED = ("median_ms", "p90_ms", "p99_ms", "images_per_s", "runs", "opened_bytes", "peak_device_bytes")
PLANNED = ("kernels", "int8_mac_share", "macs", "activation_bytes", "weight_bytes")
SCORED = ("psnr_to_reference_db", "psnr_y_db", "ssim_y", "seam_score")
FACTS = (
    *("bits", "method", "target", "library", "library_version", "gpu_architecture", "precision", "tile_px"),
    "synthetic",
)
# Of one engine, or something that was measured beside the engines; None is what nobody told.
# measured_as: the path in the benchmark's file. timing: `bench`, or `report` for single runs on the report's own
# pictures. memory_bytes: what the process grew by in opening the engine, or what it took of the GPU.
ROW = (
    *("name", *FACTS, "size_bytes", "measured_as", "timing", "stages_ms", *MEASURED, "memory_bytes"),
    *("int8_mac_share", "weight_bytes", *SCORED),
)


def engine_section(request: ReportRequest, pictures: Mapping[str, Any] | None) -> Section | None:
    """Collect the section, None without engines and measurements. pictures: the other section's facts.

    Raises BundleError.
    """
    measured: dict[str, Mapping[str, Any]] = {}
    for bench in request.bench:
        for entry in bench["engines"]:
            # Of several sizes the first, which `environment` names.
            measured.setdefault(str(entry["path"]), entry)
    reports = {path: inspect_engine(path, layers=True) for path in request.engines}
    rows = [_row(path, report, _measurement_of(path, measured), pictures) for path, report in reports.items()]
    taken = {row["measured_as"] for row in rows}
    rows += [_measured_row(entry) for path, entry in measured.items() if path not in taken]
    if not rows:
        return None
    networks = [network for path, report in reports.items() for network in _networks(path, report)]
    facts = {
        "rows": rows,
        "networks": networks,
        "environment": _environment(request.bench),
        "warnings": [str(warning) for bench in request.bench for warning in bench.get("warnings") or ()],
    }
    section = Section(facts)
    timed = [row for row in rows if row["stages_ms"]]
    if timed:
        section.art["stages"] = plots.stages(timed)
    for key, label in (
        ("psnr_y_db", "PSNR-Y against the original, dB"),
        ("psnr_to_reference_db", "PSNR against full precision, dB"),
    ):
        points = [row for row in rows if row[key] is not None and row["median_ms"] is not None]
        if len(points) > 1:
            section.art["quality"] = plots.quality(points, key, label)
            break
    planned = [network for network in networks if network["bits"] != "fp" and network["macs"]]
    first = [network for network in planned if network["engine"] == planned[0]["engine"]]
    if first:
        section.art["integer_share"] = plots.integer_share(first)
    return section


def _environment(bench: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the page says of the machine; None where no benchmark's file tells."""
    found: Any = next((item["environment"] for item in bench if isinstance(item.get("environment"), dict)), None)
    if found is None:
        return None
    gpus = [gpu for gpu in found.get("gpus") or () if isinstance(gpu, dict)]
    return {key: found.get(key) for key in ("cpu", "threads", "date")} | {"gpus": [gpu.get("name") for gpu in gpus]}


def _measurement_of(path: Path, measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one of this very file, else the only one of its name; else empty."""
    same = [entry for key, entry in measured.items() if Path(key).resolve() == path.resolve()]
    named = [entry for key, entry in measured.items() if Path(key).name == path.name]
    found = same or named
    return found[0] if len(found) == 1 else {}


def _row(
    path: Path, report: Mapping[str, Any], entry: Mapping[str, Any], pictures: Mapping[str, Any] | None
) -> dict[str, Any]:
    manifest, total = report["manifest"], report["total"] or {}
    row = dict.fromkeys(ROW) | {key: manifest[key] for key in FACTS}
    row |= {"name": path.name, "size_bytes": path.stat().st_size}
    row |= {key: total.get(key) for key in ("int8_mac_share", "weight_bytes")}
    if pictures:
        mean: Mapping[str, Any] = next((mean for mean in pictures["means"] if mean["variant"] == path.stem), {})
        row |= {key: mean.get(key) for key in SCORED} | {"median_ms": mean.get("ms")}
        row["stages_ms"] = pictures["stages_ms"].get(path.stem)
        row["timing"] = "report" if row["stages_ms"] else None
    return row | _measurements(entry)


def _measurements(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row `intsr bench` measured."""
    if not entry:
        return {}
    found = {key: entry.get(key) for key in MEASURED}
    found |= {"timing": "bench", "measured_as": entry["path"], "stages_ms": entry["stages_ms"]}
    return found | {"memory_bytes": found["peak_device_bytes"] or found["opened_bytes"]}


def _measured_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Something that was measured beside the engines: another one, or the model in torch."""
    row = dict.fromkeys(ROW) | {key: str(entry.get(key, "")) for key in ("bits", "target", "precision")}
    row |= {"name": Path(str(entry["path"])).name, "size_bytes": entry.get("engine_bytes")}
    return row | {"synthetic": bool(entry.get("synthetic"))} | _measurements(entry)


def _networks(path: Path, report: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """What the builder made of each network, where it said so."""
    return [
        {
            "engine": path.name,
            "bits": report["manifest"]["bits"],
            "name": plan["name"],
            **{key: plan.get(key) for key in PLANNED},
            "float_layers": [
                {**layer, "reason": reason_of_engine_layer(layer["name"])} for layer in plan.get("float_layers") or ()
            ],
        }
        for plan in report["networks"]
    ]
