"""A small valid bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from intsr.bundle import SCHEMA_VERSION, write_bundle
from intsr.types import NETWORKS, Manifest, NetworkEntry, TensorInfo

MEMBERS = {f"{name}.plan": bytes(range(40 + i)) * 3 for i, name in enumerate(NETWORKS)}


@pytest.fixture
def manifest() -> Manifest:
    image, latent = (1, 3, 64, 64), (1, 4, 16, 16)
    shapes = {"encoder": (image, latent), "unet": (latent, latent), "decoder": (latent, image)}
    networks = tuple(
        NetworkEntry(name, f"{name}.plan", TensorInfo("a", one, "float32"), TensorInfo("b", other, "float16"))
        for name, (one, other) in shapes.items()
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


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "members").mkdir()
    files = {}
    for name, content in MEMBERS.items():
        files[name] = tmp_path / "members" / name
        files[name].write_bytes(content)
    return files


@pytest.fixture
def bundle_path(tmp_path: Path, manifest: Manifest, members: dict[str, Path]) -> Path:
    path = tmp_path / "tiny.engine"
    write_bundle(path, manifest, members)
    return path
