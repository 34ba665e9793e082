"""What a batch will cost, from headers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intsr.bundle import read_manifest
from intsr.manifest import TileEntry
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.plan import cheapest_tile, picture_sizes
from intsr.runtime.tiles.grid import plan_tiles, tile_starts

Run = Callable[..., tuple[int, str, str]]


@given(st.integers(1, 400), st.integers(2, 64), st.data())
def test_starts_are_few_and_spread_evenly(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    last = max(length - tile, 0)
    assert starts[0] == 0 and starts[-1] == last
    steps = np.diff(starts)
    assert len(steps) == 0 or (steps.max() <= tile - overlap and steps.max() - steps.min() <= 1)
    # One fewer would share less.
    assert len(steps) == 0 or (len(steps) - 1) * (tile - overlap) < last


def test_redundancy() -> None:
    assert plan_tiles(768, 1024, 128, 16).redundancy == 63 * 128**2 / (1024 * 768)
    assert plan_tiles(64, 64, 128, 16).redundancy == 4


def manifest(*tiles: tuple[int, int], min_side_px: int = 0) -> Any:
    entries = [TileEntry(tile_px, overlap_px, ()) for tile_px, overlap_px in tiles]
    facts = {"upscale_factor": 4, "min_side_px": min_side_px}
    return SimpleNamespace(all_tiles=entries, tile_px=entries[0].tile_px, **facts)


def test_sizes_of_pictures_that_can_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    jobs = [Job(tmp_path / name, tmp_path / f"large-{name}") for name in ("a.png", "missing.png", "a.png")]
    assert list(picture_sizes(jobs)) == [(5, 7)] * 2


@pytest.mark.parametrize(
    ("sizes", "overlap_px", "expected"),
    [
        ([(64, 64)], None, 64),
        ([(128, 128)], None, 128),
        # A fifth has to be saved.
        ([(100, 130)], None, 64),
        ([(768, 1024)], None, 128),
        # All together decide.
        ([(64, 64), (768, 1024)], None, 128),
        ([(64, 64)] * 9 + [(128, 128)], None, 64),
        # An overlap that the smaller tile cannot have.
        ([(64, 64)], 70, 128),
        ([], None, 128),
    ],
)
def test_the_cheapest_tile(sizes: list[tuple[int, int]], overlap_px: int | None, expected: int) -> None:
    # Larger ones than the default are for those who ask for them.
    engine = manifest((128, 16), (64, 8), (256, 32))
    assert cheapest_tile(engine, sizes, overlap_px) == expected


def test_a_small_picture_that_grows_wants_the_larger_tile() -> None:
    tiles = (128, 16), (64, 8)
    assert cheapest_tile(manifest(*tiles), [(64, 64)]) == 64
    assert cheapest_tile(manifest(*tiles, min_side_px=512), [(64, 64), (1, 1)]) == 128


def test_a_dry_run_says_what_a_run_makes(
    upscale: Run, identity_engine: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    for name, size in (("a", 1), ("b", 2)):
        Image.fromarray(np.tile(photo, (size, size, 1))).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    arguments = (tmp_path, "-o", tmp_path / "out")
    code, out, err = upscale(*arguments, "--dry-run", "--json")
    *planned, broken = (json.loads(line) for line in out.splitlines())
    assert (broken["status"], "not a picture" in broken["error"]) == ("failed", True)
    assert code == 1 and err.count("\n") == 1 and "c.png" in err and not (tmp_path / "out").exists()
    _, out, _ = upscale(*arguments, "--json")
    made = [report for report in map(json.loads, out.splitlines()) if report["status"] == "ok"]
    keys = ("input", "output", "width", "height", "tiles", "tile_px")
    assert [[one[key] for key in keys] for one in planned] == [[one[key] for key in keys] for one in made]
    plan = plan_tiles(53, 71, planned[0]["tile_px"], read_manifest(identity_engine).overlap_px)
    assert planned[0]["redundancy"] == round(plan.redundancy, 3) > 1
    code, out, _ = upscale(tmp_path / "a.png", "-o", tmp_path / "new.png", "--dry-run")
    assert code == 0 and f"{planned[0]['redundancy']:.2f} times the picture computed" in out
    assert not (tmp_path / "new.png").exists()
