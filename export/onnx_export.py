"""Write a folded model as three ONNX files and `export.json`, which a compiler needs beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intsr.errors import ExportError, UsageError
from intsr.export.fold import FoldedModel, FoldedNetwork
from intsr.export.graph_builder import ExternalData
from intsr.export.lowering import LOWERINGS, Lowering
from intsr.export.network_lowering import NetworkLowering
from intsr.export.onnx_file import read_onnx
from intsr.export.quantized import FLOAT
from intsr.files import atomic_folder, check_free_space
from intsr.types import NETWORKS, Bits, NetworkEntry, dataclass_from_mapping, network_entries_from_list

SCHEMA_VERSION = 1
EXPORT_NAME = "export.json"
EXTERNAL_DATA_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """`export.json`: what the three graphs are. `networks[i].member` is a file beside it.

    synthetic: of random weights.
    """

    schema_version: int
    model: str
    method: str
    bits: str
    parts: tuple[str, ...]
    lowering: str
    tile_px: int
    upscale_factor: int
    resize_filter: str
    calibration_digest: str
    licence: str
    networks: tuple[NetworkEntry, ...]
    synthetic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "networks", tuple(self.networks))


def check_tile(tile_px: int, upscale_factor: int, size_multiple_px: int) -> None:
    """Raises UsageError where the networks cannot take a tile of that size."""
    if tile_px < 1 or tile_px * upscale_factor % size_multiple_px:
        step = size_multiple_px // upscale_factor or 1
        raise UsageError("--tile", f"{tile_px}", f"a positive multiple of {step}")


def export_onnx(
    folded: FoldedModel,
    lowering: Lowering,
    tile_px: int,
    folder: Path,
    on_network: Callable[[str], None] = lambda name: None,
) -> OnnxExport:
    """Write the folder in one piece. `on_network` is told each network's name as it begins. Raises ExportError."""
    return export_networks(folded, folded.networks, lowering, tile_px, folder, on_network)


def export_networks(
    folded: FoldedModel,
    networks: Iterable[FoldedNetwork],
    lowering: Lowering,
    tile_px: int,
    folder: Path,
    on_network: Callable[[str], None],
) -> OnnxExport:
    """As `export_onnx`, with networks that may be made one after another; `folded` says all else."""
    spec = folded.spec
    check_tile(tile_px, spec.upscale_factor, spec.size_multiple_px)
    side = tile_px * spec.upscale_factor
    shape: tuple[int, ...] = (1, 3, side, side)
    entries = []
    with atomic_folder(folder, marker=EXPORT_NAME) as temporary:
        for network in networks:
            on_network(network.name)
            entry = _write_network(network, lowering, shape, temporary)
            # Or it would be held while the next one is made.
            del network
            entries.append(entry)
            shape = entry.output.shape
        export = OnnxExport(
            schema_version=SCHEMA_VERSION,
            model=spec.name,
            method=folded.method,
            bits=bits_text(folded.bits, lowering),
            parts=folded.parts,
            lowering=lowering.name,
            tile_px=tile_px,
            upscale_factor=spec.upscale_factor,
            resize_filter=spec.resize_filter,
            calibration_digest=folded.calibration_digest,
            licence=spec.licence,
            networks=tuple(entries),
            synthetic=spec.synthetic,
        )
        (temporary / EXPORT_NAME).write_text(json.dumps(asdict(export), indent=2) + "\n", encoding="utf-8")
    return export


def bits_text(bits: Bits, lowering: Lowering) -> str:
    """`w8a16` for integer weights and fp16 activations, else the calibration's own."""
    if not bits.quantized or lowering.activation != FLOAT:
        return str(bits)
    return f"w{bits.weights}a{8 * np.dtype(lowering.float_dtype).itemsize}"


def _write_network(network: FoldedNetwork, lowering: Lowering, shape: tuple[int, ...], folder: Path) -> NetworkEntry:
    member = f"{network.name}.onnx"
    size_bytes = stored_bytes(network, lowering)
    check_free_space(folder, size_bytes)
    external = size_bytes > EXTERNAL_DATA_BYTES
    with ExternalData(folder / f"{member}.data") if external else nullcontext() as data:
        model, info_in, info_out = NetworkLowering(network, lowering, shape, data).run()
    onnx.save_model(model, folder / member)
    # By path: the checker then also looks at external data, and takes models above protobuf's 2 GB.
    onnx.checker.check_model(str(folder / member), full_check=not external)
    return NetworkEntry(network.name, member, info_in, info_out)


def stored_bytes(network: FoldedNetwork, lowering: Lowering) -> int:
    """Of its weights in the ONNX file: a byte for an integer one."""
    float_bytes = np.dtype(lowering.float_dtype).itemsize
    codes = {f"{site}.weight" for site in network.layers}
    tensors = network.module.state_dict().items()
    return sum(tensor.numel() * (1 if name in codes else float_bytes) for name, tensor in tensors)


def load_export(folder: Path) -> OnnxExport:
    """Read `export.json` and check that every graph is there and keeps its data inside the folder.

    Raises ExportError for a file missing, unknown keys, or members and external data that lie elsewhere.
    """
    path = folder / EXPORT_NAME
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(path, f"cannot be read ({error})", "a folder that intsr export wrote") from error
    if not isinstance(values, dict):
        raise ExportError(path, f"a JSON {type(values).__name__}", "an object", "export again")
    if values.get("schema_version") != SCHEMA_VERSION or values.get("lowering") not in [*LOWERINGS]:
        raise ExportError(path, "another schema version or lowering", f"version {SCHEMA_VERSION}", "export again")
    try:
        networks = network_entries_from_list(values["networks"], str(path))
        export = dataclass_from_mapping(OnnxExport, {**values, "networks": networks}, str(path))
    except (KeyError, TypeError, UsageError) as error:
        raise ExportError(path, f"is not valid ({error})", fix="export again") from error
    if tuple(entry.name for entry in export.networks) != NETWORKS:
        raise ExportError(path, f"networks {[e.name for e in export.networks]}", ", ".join(NETWORKS))
    for entry in export.networks:
        if Path(entry.member).name != entry.member:
            raise ExportError(path, f"member {entry.member!r}", "plain file names", "export again")
        read_onnx(folder / entry.member)
    return export
