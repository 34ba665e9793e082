"""A picture in bands: the same bits as a whole, and memory that does not grow with its height."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intsr.errors import VerificationError
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.color_fix import adain
from intsr.runtime.tiles import blend as bands
from intsr.runtime.tiles.stage_clock import STAGES, StageClock
from intsr.runtime.upscaler import Upscaler
from intsr.types import COLOR_FIXES, TensorInfo


class FunctionNetwork:
    def __init__(self, function: Any = lambda x: x, side_px: int = 64) -> None:
        self.function = function
        self.input = self.output = TensorInfo("x", (1, 3, side_px, side_px), "float32")

    def run(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.function(x), np.float32)

    def close(self) -> None:
        pass


def _upscaler(function: Any = lambda x: x) -> Upscaler:
    """Tiles of 32 pixels, twice as large."""
    networks = (FunctionNetwork(), FunctionNetwork(), FunctionNetwork(function))
    return Upscaler(Backend(networks), 32, 8, 2, resize_filter="bicubic", color_fix="none")


def _shifted(x: np.ndarray) -> np.ndarray:
    """Each tile's own mean is taken off: what a tile gives depends on where it was cut, as with GroupNorm."""
    return np.tanh(x * 1.3 - x.mean(axis=(2, 3), keepdims=True))


@given(st.integers(1, 150), st.integers(1, 90), st.integers(0, 24), st.sampled_from(COLOR_FIXES), st.booleans())
@settings(max_examples=25, deadline=None)
def test_rows_are_the_picture(height: int, width: int, overlap_px: int, fix: str, grey: bool) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width) if grey else (height, width, 3))
    upscaler, pixels = _upscaler(_shifted), pixels.astype(np.uint8)
    whole = upscaler.upscale(pixels, fix, overlap_px)
    rows = list(upscaler.upscale_rows(pixels, fix, overlap_px))
    np.testing.assert_array_equal(np.concatenate(rows), whole)


def test_how_wide_bands_are_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(2).integers(0, 65536, (200, 120, 3)).astype(np.uint16)
    whole = {fix: _upscaler(_shifted).upscale(pixels, fix) for fix in COLOR_FIXES}
    monkeypatch.setattr(bands, "BAND_BYTES", 0)
    monkeypatch.setattr(bands, "LEAST_BAND_ROWS", 3)
    monkeypatch.setattr(adain, "HELD_BYTES", 0)
    for fix in COLOR_FIXES:
        rows = list(_upscaler(_shifted).upscale_rows(pixels, fix))
        assert len(rows) > 100
        np.testing.assert_array_equal(np.concatenate(rows), whole[fix])


@pytest.mark.parametrize("fix", COLOR_FIXES)
def test_memory_does_not_grow_with_the_height(fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adain, "HELD_BYTES", 1 << 20)
    peaks = []
    for height in (200, 1600):
        pixels = np.random.default_rng(3).integers(0, 256, (height, 200, 3)).astype(np.uint8)
        tracemalloc.start()
        for _ in _upscaler().upscale_rows(pixels, fix):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Eight times the picture: 7 MB more of output, 23 MB of it as floats.
    assert peaks[1] < peaks[0] + 1_500_000


def test_networks_run_as_rows_are_taken() -> None:
    """Nothing runs ahead of what is asked for by more than a row of tiles."""
    ran: list[int] = []

    def note(x: np.ndarray) -> np.ndarray:
        ran.append(1)
        return x

    pixels = np.random.default_rng(4).integers(0, 256, (24 * 10 + 8, 32, 3)).astype(np.uint8)
    rows = _upscaler(note).upscale_rows(pixels)
    assert ran == []
    next(rows)
    assert len(ran) == 1
    rest = sum(len(part) for part in rows)
    assert (len(ran), rest) == (10, 2 * len(pixels) - 48)


def test_an_unfinished_picture_closes_its_networks_work() -> None:
    closed: list[bool] = []
    upscaler = _upscaler()
    run_tiles = upscaler.run_tiles

    def watched(inputs: Iterator[np.ndarray], clock: StageClock) -> Iterator[np.ndarray]:
        try:
            yield from run_tiles(inputs, clock)
        finally:
            closed.append(True)

    upscaler.run_tiles = watched  # type: ignore[method-assign, assignment]
    rows = upscaler.upscale_rows(np.random.default_rng(5).integers(0, 256, (300, 40, 3)).astype(np.uint8))
    next(rows)
    assert closed == []
    rows.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_a_late_fault_is_found_before_the_picture_ends() -> None:
    count = 0

    def spoil(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.full_like(x, np.nan) if count == 9 else x

    rows = _upscaler(spoil).upscale_rows(np.random.default_rng(6).integers(0, 256, (300, 32, 3)).astype(np.uint8))
    with pytest.raises(VerificationError, match="NaN"):
        list(rows)


def test_timed_iteration_counts_the_making_only() -> None:
    clock = StageClock()
    assert list(clock.timed("blend", iter([1, 2, 3]))) == [1, 2, 3]
    assert set(clock.stages_ms) == set(STAGES)
    assert 0 < clock.stages_ms["blend"] < 100
