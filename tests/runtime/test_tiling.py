"""Tiles cover every pixel, and their weights sum to 1 there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.errors import UsageError
from intsr.runtime.tiles.grid import blend_weights, pad_to_square, plan_tiles, tile_starts

AXES = st.integers(2, 40).flatmap(
    lambda tile_px: st.tuples(st.integers(1, 200), st.just(tile_px), st.integers(0, tile_px - 1))
)


@given(AXES)
def test_tiles_cover_the_axis_and_weights_sum_to_one_at_every_pixel(axis: tuple[int, int, int]) -> None:
    length_px, tile_px, overlap_px = axis
    starts = tile_starts(length_px, tile_px, overlap_px)
    assert (starts[0], starts[-1]) == (0, max(length_px - tile_px, 0))
    assert all(0 < after - before <= tile_px - overlap_px for before, after in pairwise(starts))
    total = np.zeros(length_px)
    for start, weights in zip(starts, blend_weights(starts, tile_px, length_px), strict=True):
        assert weights.min() > 0
        total[start : start + len(weights)] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_weights_fall_smoothly_towards_a_neighbour() -> None:
    first, second = blend_weights((0, 24), 32, 56)
    assert np.all(first[:24] == 1)
    assert np.all(np.diff(first[24:]) < 0)
    assert first[-1] < 0.02
    np.testing.assert_array_equal(first, second[::-1])


def test_plan_of_a_small_picture_is_one_tile_of_its_size() -> None:
    (tile,) = plan_tiles(5, 9, 16, 4).tiles
    assert (tile.top, tile.left, tile.height, tile.width) == (0, 0, 5, 9)


@pytest.mark.parametrize("overlap_px", [-1, 16, 17])
def test_overlap_must_be_below_the_tile(overlap_px: int) -> None:
    with pytest.raises(UsageError, match="--overlap"):
        plan_tiles(64, 64, 16, overlap_px)


def test_padding_reflects_and_repeats_one_pixel() -> None:
    padded = pad_to_square(np.array([[[0.0, 1.0, 2.0]]] * 3), 5)
    np.testing.assert_array_equal(padded[1], [[0, 1, 2, 1, 0]] * 5)
