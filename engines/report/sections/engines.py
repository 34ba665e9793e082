"""Everything that a report says and shows of engines: what they are, what they cost, what runs on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intsr.engines.inspect.engine import inspect_engine
from intsr.engines.report.measure.reasons import reason_of_engine_layer
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.plots import engines as plots
from intsr.engines.report.sections.section import Section

MEASURED = ("median_ms", "p90_ms", "p99_ms", "images_per_s", "runs", "opened_bytes", "peak_device_bytes")
PLANNED = ("kernels", "int8_mac_share", "macs", "activation_bytes", "weight_bytes")
FACTS = (
    *("bits", "method", "target", "library", "library_version", "gpu_architecture", "precision", "tile_px"),
    "synthetic",
)


@dataclass(slots=True, kw_only=True)
class EngineRow:
    """One engine, or something that was measured beside the engines; None is what nobody told."""

    name: str
    bits: str = ""
    method: str | None = None
    target: str = ""
    library: str | None = None
    library_version: str | None = None
    gpu_architecture: str | None = None
    precision: str = ""
    tile_px: int | None = None
    synthetic: bool = False
    size_bytes: int | None = None
    # The path in the benchmark's file.
    measured_as: str | None = None
    # `bench`, or `report` for single runs on the report's own pictures.
    timing: str | None = None
    stages_ms: dict[str, float] | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    runs: int | None = None
    opened_bytes: int | None = None
    peak_device_bytes: int | None = None
    # What the process grew by in opening the engine, or what it took of the GPU.
    memory_bytes: int | None = None
    int8_mac_share: float | None = None
    weight_bytes: int | None = None
    psnr_to_reference_db: float | None = None
    psnr_y_db: float | None = None
    ssim_y: float | None = None
    seam_score: float | None = None

    def measure(self, entry: Mapping[str, Any]) -> None:
        """Take in what `intsr bench` measured."""
        self.timing, self.measured_as, self.stages_ms = "bench", entry["path"], entry["stages_ms"]
        for key in MEASURED:
            setattr(self, key, entry.get(key))
        self.memory_bytes = self.peak_device_bytes or self.opened_bytes


def engine_section(request: ReportRequest, pictures: Mapping[str, Any] | None) -> Section | None:
    """Collect the section, None without engines and measurements. pictures: the other section's facts.

    Raises BundleError.
    """
    measured = {str(entry["path"]): entry for bench in request.bench for entry in bench["engines"]}
    reports = {path: inspect_engine(path, layers=True) for path in request.engines}
    found = [_row(path, report, _measurement_of(path, measured), pictures) for path, report in reports.items()]
    taken = {row.measured_as for row in found}
    found += [_measured_row(entry) for path, entry in measured.items() if path not in taken]
    if not found:
        return None
    rows = [asdict(row) for row in found]
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
    """Return what the page says of the machine; None where no benchmark's file tells."""
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
) -> EngineRow:
    manifest, total = report["manifest"], report["total"] or {}
    row = EngineRow(name=path.name, size_bytes=path.stat().st_size, **{key: manifest[key] for key in FACTS})
    row.int8_mac_share, row.weight_bytes = total.get("int8_mac_share"), total.get("weight_bytes")
    mean: Mapping[str, Any] = {}
    if pictures:
        mean = next((mean for mean in pictures["means"] if mean["variant"] == path.stem), mean)
        row.stages_ms = pictures["stages_ms"].get(path.stem)
        row.timing = "report" if row.stages_ms else None
    for key in ("psnr_to_reference_db", "psnr_y_db", "ssim_y", "seam_score"):
        setattr(row, key, mean.get(key))
    row.median_ms = mean.get("ms")
    if entry is not None:
        row.measure(entry)
    return row


def _measured_row(entry: Mapping[str, Any]) -> EngineRow:
    """Something that was measured beside the engines: another one, or the model in torch."""
    row = EngineRow(name=Path(str(entry["path"])).name, size_bytes=entry.get("engine_bytes"))
    row.bits, row.target, row.precision = (str(entry.get(key, "")) for key in ("bits", "target", "precision"))
    row.synthetic = bool(entry.get("synthetic"))
    row.measure(entry)
    return row


def _networks(path: Path, report: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """List what the builder made of each network, where it said so."""
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
