"""A small valid bundle whose members are bytes of no meaning: nothing here opens an engine."""

from __future__ import annotations

from pathlib import Path

from intsr.bundle import write_bundle
from intsr.manifest import SCHEMA_VERSION, Manifest, NetworkEntry
from intsr.types import NETWORKS, TensorInfo

MEMBERS = {f"{name}.plan": bytes(range(40 + i)) * 3 for i, name in enumerate(NETWORKS)}
IMAGE, LATENT = (1, 3, 64, 64), (1, 4, 16, 16)
SHAPES = {"encoder": (IMAGE, LATENT), "unet": (LATENT, LATENT), "decoder": (LATENT, IMAGE)}


def small_manifest() -> Manifest:
    networks = tuple(
        NetworkEntry(name, f"{name}.plan", (TensorInfo("a", one, "float32"),), (TensorInfo("b", other, "float16"),))
        for name, (one, other) in SHAPES.items()
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model="tiny",
        method="maxmin",
        bits="w8a8",
        parts=("unet", "vae"),
        target="cpu",
        library="openvino",
        library_version="1.2.3",
        gpu_architecture="",
        precision="float32",
        tile_px=16,
        overlap_px=4,
        upscale_factor=4,
        resize_filter="bicubic",
        color_fix="none",
        networks=networks,
        sha256={},
        calibration_digest="0" * 64,
        licence="Apache-2.0",
        build={"seconds": 1.5},
    )


def write_members(folder: Path) -> dict[str, Path]:
    """Member name -> file."""
    folder.mkdir()
    files = {name: folder / name for name in MEMBERS}
    for name, file in files.items():
        file.write_bytes(MEMBERS[name])
    return files


def write_small_bundle(path: Path) -> Path:
    write_bundle(path, small_manifest(), write_members(path.with_suffix(".members")))
    return path
