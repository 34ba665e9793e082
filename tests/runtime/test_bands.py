"""A picture in bands: the same bits as a whole, and memory that does not grow with its height."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import upscaler_of

from intsr.errors import VerificationError
from intsr.runtime.color_fix import adain
from intsr.runtime.tiles import blend as bands
from intsr.runtime.tiles.stage_clock import StageClock
from intsr.types import COLOR_FIXES


def _random(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _shifted(x: np.ndarray) -> np.ndarray:
    """Each tile's own mean is taken off: what a tile gives depends on where it was cut, as with GroupNorm."""
    return np.tanh(x * 1.3 - x.mean(axis=(2, 3), keepdims=True))


@given(st.integers(1, 150), st.integers(1, 90), st.integers(0, 24), st.sampled_from(COLOR_FIXES), st.booleans())
@settings(max_examples=25, deadline=None)
def test_rows_are_the_picture(height: int, width: int, overlap_px: int, fix: str, grey: bool) -> None:
    pixels = _random(height, width)[..., 0] if grey else _random(height, width)
    upscaler = upscaler_of(_shifted, tile_px=32)
    whole = upscaler.upscale(pixels, fix, overlap_px)
    rows = list(upscaler.upscale_rows(pixels, fix, overlap_px))
    np.testing.assert_array_equal(np.concatenate(rows), whole)


def test_how_wide_bands_are_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = _random(200, 120).astype(np.uint16) * 257
    upscaler = upscaler_of(_shifted, tile_px=32)
    whole = {fix: upscaler.upscale(pixels, fix) for fix in COLOR_FIXES}
    monkeypatch.setattr(bands, "BAND_BYTES", 0)
    monkeypatch.setattr(bands, "LEAST_BAND_ROWS", 3)
    monkeypatch.setattr(adain, "HELD_BYTES", 0)
    for fix in COLOR_FIXES:
        rows = list(upscaler.upscale_rows(pixels, fix))
        assert len(rows) > 100
        np.testing.assert_array_equal(np.concatenate(rows), whole[fix])


@pytest.mark.parametrize("fix", COLOR_FIXES)
def test_memory_does_not_grow_with_the_height(fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adain, "HELD_BYTES", 1 << 20)
    peaks = []
    for height in (200, 1600):
        pixels = _random(height, 200)
        tracemalloc.start()
        for _ in upscaler_of(tile_px=32).upscale_rows(pixels, fix):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Eight times the picture: 7 MB more of output, 23 MB of it as floats.
    assert peaks[1] < peaks[0] + 1_500_000


def test_networks_run_no_more_than_a_row_of_tiles_ahead_of_what_is_taken() -> None:
    ran: list[np.ndarray] = []
    pixels = _random(24 * 10 + 8, 32)
    rows = upscaler_of(lambda x: ran.append(x) or x, tile_px=32).upscale_rows(pixels)
    assert ran == []
    next(rows)
    assert len(ran) == 1
    rest = sum(len(part) for part in rows)
    assert (len(ran), rest) == (10, 2 * len(pixels) - 48)


def test_an_unfinished_picture_closes_its_networks_work() -> None:
    closed: list[bool] = []
    upscaler = upscaler_of()
    run_tiles = upscaler.run_tiles

    def watched(inputs: Iterator[np.ndarray], clock: StageClock) -> Iterator[np.ndarray]:
        try:
            yield from run_tiles(inputs, clock)
        finally:
            closed.append(True)

    upscaler.run_tiles = watched
    rows = upscaler.upscale_rows(_random(150, 20))
    next(rows)
    assert closed == []
    rows.close()
    assert closed == [True]


def test_a_late_fault_is_found_before_the_picture_ends() -> None:
    factors = iter([1] * 8 + [np.nan] + [1] * 99)
    rows = upscaler_of(lambda x: x * next(factors)).upscale_rows(_random(150, 16))
    with pytest.raises(VerificationError, match="NaN"):
        list(rows)


def test_timed_iteration_counts_the_making_only() -> None:
    clock = StageClock()
    for _ in clock.timed("blend", iter([1, 2, 3])):
        time.sleep(0.05)
    assert 0 < clock.stages_ms["blend"] < 100
