"""Everything that a report says and shows of engines: what they are, what they cost, what runs on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intsr.engines.inspect.engine import inspect_engine
from intsr.engines.report.measure.reasons import reason_of_engine_layer
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.plots import engines as plots

MEASURED = ("median_ms", "p90_ms", "p99_ms", "images_per_s", "runs", "opened_bytes", "peak_device_bytes")
PLANNED = ("kernels", "int8_mac_share", "macs", "activation_bytes", "weight_bytes")
FACTS = ("bits", "method", "target", "library", "library_version", "gpu_architecture", "precision", "tile_px")


@dataclass(slots=True)
class EngineSection:
    """facts: numbers and words, also for --json. art: drawings, for the page alone."""

    facts: dict[str, Any]
    art: dict[str, Any] = field(default_factory=dict)


def engine_section(request: ReportRequest, pictures: Mapping[str, Any] | None) -> EngineSection | None:
    """None without engines and measurements. pictures: facts of the pictures' section. Raises BundleError."""
    measured = {str(entry["path"]): entry for bench in request.bench for entry in bench["engines"]}
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
    section = EngineSection(facts)
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
    """What the page says of where it was measured; None where no file tells."""
    found: Any = next((item["environment"] for item in bench if isinstance(item.get("environment"), dict)), None)
    if found is None:
        return None
    gpus = [gpu for gpu in found.get("gpus") or () if isinstance(gpu, dict)]
    return {key: found.get(key) for key in ("cpu", "threads", "date")} | {"gpus": [gpu.get("name") for gpu in gpus]}


def _measurement_of(path: Path, measured: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one of this very file, else the only one of its name."""
    same = [entry for key, entry in measured.items() if Path(key).resolve() == path.resolve()]
    named = [entry for key, entry in measured.items() if Path(key).name == path.name]
    found = same or named
    return found[0] if len(found) == 1 else None


def _row(
    path: Path, report: Mapping[str, Any], entry: Mapping[str, Any] | None, pictures: Mapping[str, Any] | None
) -> dict[str, Any]:
    manifest, total = report["manifest"], report["total"]
    means = {mean["variant"]: mean for mean in pictures["means"]} if pictures else {}
    mean: Mapping[str, Any] = means.get(path.stem, {})
    measured = entry or {}
    own_stages = pictures["stages_ms"].get(path.stem) if pictures else None
    row = {
        "name": path.name,
        **{key: manifest[key] for key in FACTS},
        "synthetic": manifest["synthetic"],
        "size_bytes": path.stat().st_size,
        "measured_as": measured.get("path"),
        "timing": "bench" if entry else "report" if own_stages else None,
        "stages_ms": measured.get("stages_ms") or own_stages,
        "int8_mac_share": total and total.get("int8_mac_share"),
        "weight_bytes": total and total.get("weight_bytes"),
        **{key: measured.get(key) for key in MEASURED},
        **{key: mean.get(key) for key in ("psnr_to_reference_db", "psnr_y_db", "ssim_y", "seam_score")},
    }
    if row["median_ms"] is None:
        row["median_ms"] = mean.get("ms")
    row["memory_bytes"] = row["peak_device_bytes"] or row["opened_bytes"]
    return row


def _measured_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Something that was measured beside the engines: another one, or the model in torch."""
    names = (*FACTS, "int8_mac_share", "weight_bytes", "psnr_to_reference_db", "psnr_y_db", "ssim_y", "seam_score")
    return {
        **dict.fromkeys(names),
        "name": Path(str(entry["path"])).name,
        "bits": str(entry.get("bits", "")),
        "target": str(entry.get("target", "")),
        "precision": str(entry.get("precision", "")),
        "synthetic": bool(entry.get("synthetic")),
        "size_bytes": entry.get("engine_bytes"),
        "measured_as": entry["path"],
        "timing": "bench",
        "stages_ms": entry["stages_ms"],
        **{key: entry.get(key) for key in MEASURED},
        "memory_bytes": entry.get("peak_device_bytes") or entry.get("opened_bytes"),
    }


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
