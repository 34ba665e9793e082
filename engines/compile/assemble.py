"""From ONNX graphs to one `.engine` file."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from intsr.bundle import write_bundle
from intsr.engines.builders.cache import PlanCache
from intsr.engines.builders.child import build_each_in_child
from intsr.engines.builders.onnx_layers import branch_shares
from intsr.engines.builders.types import Build, BuildOptions, BuildReport
from intsr.errors import UsageError
from intsr.export.graphs import OnnxExport, load_export
from intsr.files import check_free_space, check_output_file
from intsr.manifest import Manifest, NetworkEntry, TileEntry
from intsr.onnx_files import read_onnx
from intsr.runtime.backends.codes import pack_codes
from intsr.targets import Target, target_from_name
from intsr.types import USUAL_DEFAULTS

# An eighth of the tile, at least: what lies nearer to a tile's edge sees zeros where its neighbour sees the picture.
# A quarter agrees with the untiled picture 0.3 dB better and costs 1.4 times as much (docs/use/tiles.md).
OVERLAP_DIVISOR = USUAL_DEFAULTS.overlap_divisor
LEAST_OVERLAP_PX = 8
# Every kernel of every plan, for those who look closer: beside the networks, so that the manifest stays readable.
KERNELS_MEMBER = "kernels.json"
# Each network as it is built, then all of them in the bundle; about as large as the graphs they are made of.
COPIES_ON_DISK = 2


def compile_engine(
    export_folder: Path,
    output: Path,
    options: BuildOptions,
    *,
    precision: str | None = None,
    on_network: Callable[[str], None] = lambda name: None,
    cache: PlanCache | None = None,
) -> Manifest:
    """Build every graph of a folder that `export_onnx` wrote for `options.target`, a child process for each network.

    precision: of what is not integer, written into the manifest; None for the target's own. cache: of networks built
    before. Nothing is left behind on failure. Raises UsageError (lowering of another target), ExportError,
    BuildError, OutOfMemoryError, MissingLibraryError.
    """
    target = target_from_name(options.target)
    export = load_export(export_folder)
    if not target.takes(export.lowering):
        expected = f"{target.lowering} for target {target.name}"
        fix = f"export again with --target {target.name}"
        raise UsageError(export_folder, f"lowered as {export.lowering}", expected, fix)
    check_output_file(output)
    check_free_space(output.parent, COPIES_ON_DISK * sum(path.stat().st_size for path in export_folder.iterdir()))
    output.parent.mkdir(parents=True, exist_ok=True)
    sizes = [export.tile_px, *(tile.tile_px for tile in export.tiles)]
    built: list[_Built] = []
    with tempfile.TemporaryDirectory(prefix=".intsr-compile-", dir=output.parent) as name:
        folder = Path(name)
        for entries in zip(export.networks, *(tile.networks for tile in export.tiles), strict=True):
            on_network(entries[0].name)
            graphs = dict(zip(sizes, entries, strict=True))
            builds = _builds(target, export_folder, folder, graphs, options)
            reports = cache.build_each(target, builds) if cache else build_each_in_child(target.builder, builds)
            built.append(_Built(_entries(target, list(graphs.values()), builds), reports))
        members = {entry.member: folder / entry.member for network in built for entry in network.entries}
        for network in built:
            _pack(target, [members[entry.member] for entry in network.entries if not entry.weights_member])
        plans = {network.entries[0].name: network.reports[0].plan for network in built}
        if any("layers" in plan for plan in plans.values()):
            members[KERNELS_MEMBER] = folder / KERNELS_MEMBER
            kernels = {name: plan.get("layers", []) for name, plan in plans.items()}
            members[KERNELS_MEMBER].write_text(json.dumps(kernels), encoding="utf-8")
        manifest = _manifest(export, built, options, precision or target.precision)
        if branches := branch_shares([read_onnx(export_folder / network.member) for network in export.networks]):
            manifest.build["branches"] = branches
        return write_bundle(output, manifest, members)


@dataclass(frozen=True, slots=True)
class _Built:
    """One network at every tile size, the default first."""

    entries: list[NetworkEntry]
    reports: list[BuildReport]


def _builds(
    target: Target, export_folder: Path, folder: Path, graphs: Mapping[int, NetworkEntry], options: BuildOptions
) -> list[Build]:
    """What is to be built of one network. graphs: tile size -> its graph of that size, the default first."""
    builds: list[Build] = []
    for tile_px, graph in graphs.items():
        further = f"@{tile_px}.{target.further_suffix or target.suffix}"
        member = f"{graph.name}{further if builds else f'.{target.suffix}'}"
        builds.append(Build(export_folder / graph.member, folder / member, options))
        # Where weights are shared, they are compiled when the engine is opened: one size is enough to look at.
        options = replace(options, detailed=options.detailed and not target.sharing)
    return builds


def _entries(target: Target, graphs: Sequence[NetworkEntry], builds: Sequence[Build]) -> list[NetworkEntry]:
    """The network at every size; further ones share the first one's weights where the target can do that."""
    main, *further = (build.plan_path for build in builds)
    weights_member = ""
    if further and target.sharing:
        _function(target.sharing)(main, further)
        weights_member = main.name
    return [
        NetworkEntry(graph.name, plan.name, graph.inputs, graph.outputs, weights_member if plan != main else "")
        for plan, graph in zip((main, *further), graphs, strict=True)
    ]


def _pack(target: Target, members: Sequence[Path]) -> None:
    """Store integer weights of few bits in as few."""
    if target.codes:
        places_of_codes = _function(target.codes)
        for path in members:
            pack_codes(path, places_of_codes(path))


def _function(name: str) -> Callable[..., Any]:
    """Return the function that a target names, "module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def overlap_of(tile_px: int, divisor: int = OVERLAP_DIVISOR) -> int:
    """The overlap of tiles of that size: one part of `divisor`, at least 8 pixels, and at most half the tile."""
    return min(max(tile_px // divisor, LEAST_OVERLAP_PX), tile_px // 2)


def _manifest(export: OnnxExport, built: Sequence[_Built], options: BuildOptions, precision: str) -> Manifest:
    reports = [report for network in built for report in network.reports]
    first, defaults = reports[0], export.defaults
    networks, *further = zip(*(network.entries for network in built), strict=True)
    build: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(report.seconds for report in reports), 3),
        "peak_bytes": max(report.peak_bytes for report in reports),
        "plans": {
            network.entries[0].name: {key: value for key, value in network.reports[0].plan.items() if key != "layers"}
            for network in built
        },
        "options": asdict(options) | {"timing_cache": None},
    }
    return Manifest(
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
        overlap_px=overlap_of(export.tile_px, defaults.overlap_divisor),
        upscale_factor=export.upscale_factor,
        resize_filter=export.resize_filter,
        color_fix=defaults.color_fix,
        networks=networks,
        sha256={},
        calibration_digest=export.calibration_digest,
        licence=export.licence,
        build=build,
        synthetic=export.synthetic,
        chunk=export.chunk,
        family=defaults.family,
        prompt=export.prompt,
        min_side_px=defaults.min_side_px,
        tiles=tuple(
            TileEntry(tile.tile_px, overlap_of(tile.tile_px, defaults.overlap_divisor), entries)
            for tile, entries in zip(export.tiles, further, strict=True)
        ),
    )
