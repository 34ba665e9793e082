"""From three ONNX graphs to one `.engine` file."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intsr.bundle import SCHEMA_VERSION, write_bundle
from intsr.engines.build_types import BuildOptions, BuildReport
from intsr.engines.child import build_in_child
from intsr.engines.targets import target_from_name
from intsr.errors import UsageError
from intsr.export.onnx_export import OnnxExport, load_export
from intsr.files import check_free_space, check_output_file
from intsr.types import Manifest, NetworkEntry

# A quarter of the tile: what lies nearer to a tile's edge than this sees zeros where its neighbour sees the picture.
OVERLAP_SHARE = 4
DEFAULT_COLOR_FIX = "wavelet"
# Every kernel of every plan, for those who look closer: beside the networks, so that the manifest stays readable.
KERNELS_MEMBER = "kernels.json"
# Each network as it is built, then all of them in the bundle; about as large as the graphs they are made of.
COPIES_ON_DISK = 2


def compile_engine(
    export_folder: Path,
    output: Path,
    options: BuildOptions,
    precision: str | None = None,
    on_network: Callable[[str], None] = lambda name: None,
) -> Manifest:
    """Build every graph of a folder that `export_onnx` wrote for `options.target`, in one child process each.

    precision: of what is not integer, written into the manifest; None for the target's own. Nothing is left behind
    on failure. Raises UsageError (lowering of another target), ExportError, BuildError, MissingLibraryError.
    """
    target = target_from_name(options.target)
    export = load_export(export_folder)
    if not target.takes(export.lowering):
        raise UsageError(
            export_folder,
            f"lowered as {export.lowering}",
            f"{target.lowering} for target {target.name}",
            f"export again with --target {target.name}",
        )
    check_output_file(output)
    check_free_space(output.parent, COPIES_ON_DISK * sum(path.stat().st_size for path in export_folder.iterdir()))
    output.parent.mkdir(parents=True, exist_ok=True)
    reports: dict[str, BuildReport] = {}
    with tempfile.TemporaryDirectory(prefix=".intsr-compile-", dir=output.parent) as folder:
        members, entries = {}, []
        for entry in export.networks:
            on_network(entry.name)
            member = f"{entry.name}.{target.suffix}"
            members[member] = Path(folder) / member
            reports[entry.name] = build_in_child(
                target.module, export_folder / entry.member, members[member], options
            )
            entries.append(NetworkEntry(entry.name, member, entry.input, entry.output))
        if any("layers" in report.plan for report in reports.values()):
            members[KERNELS_MEMBER] = Path(folder) / KERNELS_MEMBER
            kernels = {name: report.plan.get("layers", []) for name, report in reports.items()}
            members[KERNELS_MEMBER].write_text(json.dumps(kernels), encoding="utf-8")
        manifest = _manifest(export, tuple(entries), options, reports, precision or target.precision)
        return write_bundle(output, manifest, members)


def _manifest(
    export: OnnxExport,
    entries: tuple[NetworkEntry, ...],
    options: BuildOptions,
    reports: dict[str, BuildReport],
    precision: str,
) -> Manifest:
    first = next(iter(reports.values()))
    build: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(report.seconds for report in reports.values()), 3),
        "peak_bytes": max(report.peak_bytes for report in reports.values()),
        "plans": {
            name: {key: value for key, value in report.plan.items() if key != "layers"}
            for name, report in reports.items()
        },
        "options": options.to_mapping() | {"timing_cache": None},
    }
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=export.model,
        method=export.method,
        bits=export.bits,
        parts=export.parts,
        target=options.target,
        library=first.library,
        library_version=first.library_version,
        gpu_architecture=first.gpu_architecture,
        precision=precision,
        tile_px=export.tile_px,
        overlap_px=export.tile_px // OVERLAP_SHARE,
        upscale_factor=export.upscale_factor,
        resize_filter=export.resize_filter,
        color_fix=DEFAULT_COLOR_FIX,
        networks=entries,
        sha256={},
        calibration_digest=export.calibration_digest,
        licence=export.licence,
        build=build,
        synthetic=export.synthetic,
    )
