"""A small valid bundle, and what it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import small_manifest, write_members

from intsr.bundle import write_bundle
from intsr.manifest import Manifest


@pytest.fixture
def manifest() -> Manifest:
    return small_manifest()


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Path]:
    return write_members(tmp_path / "members")


@pytest.fixture
def bundle_path(tmp_path: Path, manifest: Manifest, members: dict[str, Path]) -> Path:
    path = tmp_path / "tiny.engine"
    write_bundle(path, manifest, members)
    return path
