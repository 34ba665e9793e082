"""Write folded networks as ONNX files and `export.json`, which a compiler needs beside them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from intsr.errors import ExportError, UsageError
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.lower.network import lower_chunk
from intsr.export.lower.plugins.group_norm import GROUP_NORM, fuse_group_norm_into_plugin
from intsr.export.lower.write.activations import FLOAT
from intsr.export.onnx.builder import ExternalData
from intsr.files import atomic_folder, check_free_space
from intsr.json_files import read_json
from intsr.manifest import ChunkEntry, NetworkEntry
from intsr.onnx_files import read_onnx
from intsr.targets.lowering import LOWERINGS, Lowering
from intsr.types import (
    DIRECT_NETWORKS,
    NETWORKS,
    USUAL_DEFAULTS,
    VIDEO_NETWORKS,
    Bits,
    Count,
    PictureSpec,
    RunDefaults,
    check_tile,
)

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration
    from intsr.calib.models.video_spec import VideoSpec

SCHEMA_VERSION = 2
EXPORT_NAME = "export.json"
EXTERNAL_DATA_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ExportTile:
    """One more tile size of an export: the same networks with other shapes."""

    tile_px: Count
    networks: tuple[NetworkEntry, ...]


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """`export.json`: what the graphs are. Raises ValueError for what no export can be."""

    schema_version: int
    model: str
    method: str
    bits: str
    parts: tuple[str, ...]
    lowering: str
    tile_px: Count
    upscale_factor: Count
    resize_filter: str
    calibration_digest: str
    licence: str
    # Of the first tile size. A member is a file beside export.json.
    networks: tuple[NetworkEntry, ...]
    # Whether the weights are random.
    synthetic: bool = False
    tiles: tuple[ExportTile, ...] = ()
    # Of a video model.
    chunk: ChunkEntry | None = None
    # What the context was made of; None where it came as a tensor.
    prompt: str | None = None
    defaults: RunDefaults = USUAL_DEFAULTS

    def __post_init__(self) -> None:
        if self.lowering not in LOWERINGS:
            raise ValueError(f"lowering {self.lowering!r}, expected one of {', '.join(LOWERINGS)}")
        for key in ("tile_px", "upscale_factor"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} {getattr(self, key)}, expected at least 1")
        known = (NETWORKS, DIRECT_NETWORKS) if self.chunk is None else (VIDEO_NETWORKS,)
        for networks in (self.networks, *(tile.networks for tile in self.tiles)):
            if tuple(entry.name for entry in networks) not in known:
                expected = " or ".join(", ".join(names) for names in known)
                raise ValueError(f"networks {[entry.name for entry in networks]}, expected {expected}")
            for entry in networks:
                if Path(entry.member).name != entry.member:
                    raise ValueError(f"member {entry.member!r}, expected a plain file name")


def write_export(
    networks: Iterable[FoldedNetwork],
    spec: PictureSpec,
    calibration: Calibration | None,
    *,
    lowering: Lowering,
    tiles_px: Sequence[int],
    folder: Path,
    on_network: Callable[[str], None],
) -> OnnxExport:
    """Write the folder in one piece, each network as it comes.

    calibration: what the networks were folded with. tiles_px: sides of the low-resolution tiles, the default first.
    on_network: told each network's name as it is written. Raises ExportError, UsageError.
    """
    check_tiles(tiles_px, spec)
    tile_px, *further_px = tiles_px
    sides = (side * spec.input_factor for side in tiles_px)
    shapes: list[list[tuple[int, ...]]] = [[(1, 3, side, side)] for side in sides]
    entries = []
    with atomic_folder(folder, marker=EXPORT_NAME) as temporary:
        for network in networks:
            on_network(network.name)
            names = [network.name, *(f"{network.name}@{side}" for side in further_px)]
            entries.append(write_network(network, lowering, dict(zip(names, shapes, strict=True)), temporary))
            # Or it would be held while the next one is made.
            del network
            shapes = [[entry.output.shape] for entry in entries[-1]]
        first, *further = zip(*entries, strict=True)
        export = export_facts(spec, calibration, lowering, tile_px, first)
        tiles = tuple(map(ExportTile, further_px, further))
        export = replace(export, tiles=tiles, prompt=spec.prompt, defaults=spec.defaults)
        write_facts(export, temporary)
    return export


def check_tiles(tiles_px: Sequence[int], spec: PictureSpec | VideoSpec) -> None:
    """Raises UsageError for a size that the networks cannot take, or that is there twice."""
    for tile_px in tiles_px:
        check_tile(tile_px, spec.upscale_factor, spec.size_multiple_px)
    if len(set(tiles_px)) < len(tiles_px):
        raise UsageError("--tile", ",".join(map(str, tiles_px)), "each size once")


def export_facts(
    spec: PictureSpec | VideoSpec,
    calibration: Calibration | None,
    lowering: Lowering,
    tile_px: int,
    networks: tuple[NetworkEntry, ...],
    *,
    chunk: ChunkEntry | None = None,
) -> OnnxExport:
    """Return what an export of one tile size is. chunk: of a video model."""
    bits = Bits(None, None) if calibration is None else calibration.bits
    return OnnxExport(
        schema_version=SCHEMA_VERSION,
        model=spec.name,
        method="none" if calibration is None else calibration.method,
        bits=bits_text(bits, lowering),
        parts=() if calibration is None else calibration.parts,
        lowering=lowering.name,
        tile_px=tile_px,
        upscale_factor=spec.upscale_factor,
        resize_filter=spec.resize_filter,
        calibration_digest="" if calibration is None else calibration.digest(),
        licence=spec.licence,
        networks=networks,
        synthetic=spec.synthetic,
        chunk=chunk,
    )


def write_facts(export: OnnxExport, folder: Path) -> None:
    (folder / EXPORT_NAME).write_text(json.dumps(asdict(export), indent=2) + "\n", encoding="utf-8")


def bits_text(bits: Bits, lowering: Lowering) -> str:
    """`w8a16` for integer weights and fp16 activations, else the calibration's own."""
    if not bits.quantized or lowering.activation != FLOAT:
        return str(bits)
    return f"w{bits.weights}a{8 * np.dtype(lowering.float_dtype).itemsize}"


def is_weight_only(bits: str) -> bool:
    """Tell whether `bits_text` has written it of a lowering with float activations."""
    return bits.endswith(("a16", "a32"))


def write_network(
    network: FoldedNetwork, lowering: Lowering, shapes: Mapping[str, Sequence[tuple[int, ...]]], folder: Path
) -> list[NetworkEntry]:
    """Write one network as several graphs that differ in their inputs' shapes.

    shapes: file name without its ending, NAME or NAME@TILE -> shapes of the inputs. Large constants are in one file
    for all. Raises ExportError.
    """
    float_bytes = np.dtype(lowering.float_dtype).itemsize
    codes = {f"{site}.weight" for site in network.layers}
    tensors = network.module.state_dict().items()
    size_bytes = sum(tensor.numel() * (1 if name in codes else float_bytes) for name, tensor in tensors)
    external = size_bytes > EXTERNAL_DATA_BYTES
    check_free_space(folder, size_bytes if external else len(shapes) * size_bytes)
    data = ExternalData(folder / f"{next(iter(shapes))}.onnx.data") if external else None
    entries = [_write_graph(network, lowering, each, folder / f"{name}.onnx", data) for name, each in shapes.items()]
    # Traces are cycles that hold the network: it would be in memory beside the next one, and while engines are built.
    gc.collect()
    return entries


def _write_graph(
    network: FoldedNetwork,
    lowering: Lowering,
    shapes: Sequence[tuple[int, ...]],
    path: Path,
    data: ExternalData | None,
) -> NetworkEntry:
    with data or nullcontext():
        model, infos_in, infos_out = lower_chunk(network, lowering, shapes, data)
    if GROUP_NORM in lowering.plugins:
        fuse_group_norm_into_plugin(model, path.parent)
    onnx.save_model(model, path)
    # By path: the checker then also looks at external data, and takes models above protobuf's 2 GB.
    onnx.checker.check_model(str(path), full_check=data is None)
    return NetworkEntry(path.stem.partition("@")[0], path.name, infos_in, infos_out)


def load_export(folder: Path) -> OnnxExport:
    """Read `export.json` and check that every graph is there and keeps its data inside the folder.

    Raises ExportError for a file missing, unknown keys, or members and external data that lie elsewhere.
    """
    path, fix = folder / EXPORT_NAME, "export again"
    export = read_json(path, OnnxExport, error=ExportError, version=SCHEMA_VERSION, fix=fix)
    for networks in (export.networks, *(tile.networks for tile in export.tiles)):
        for entry in networks:
            read_onnx(folder / entry.member)
    return export
