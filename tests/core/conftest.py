"""A small valid bundle, and what it is made of."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from intsr.bundle import write_bundle
from intsr.manifest import Manifest

BUNDLES = runpy.run_path(str(Path(__file__).parents[1] / "support" / "bundles.py"))


@pytest.fixture
def manifest() -> Manifest:
    return BUNDLES["small_manifest"]()


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Path]:
    return BUNDLES["write_members"](tmp_path / "members")


@pytest.fixture
def bundle_path(tmp_path: Path, manifest: Manifest, members: dict[str, Path]) -> Path:
    path = tmp_path / "tiny.engine"
    write_bundle(path, manifest, members)
    return path
