"""Tiles whose pixels stay are not computed again, and that changes no bit of any frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FunctionNetwork, identity

from intsr.runtime.backends.protocol import Backend
from intsr.runtime.tiles.memory import TileMemory
from intsr.runtime.upscaler import Upscaler

TILE_PX, FACTOR = 16, 2


def _upscaler(runs: list[int]) -> Upscaler:
    def sharpen(x: np.ndarray) -> np.ndarray:
        runs.append(len(x))
        return x + np.float32(0.1) * (x - x.mean(axis=(2, 3), keepdims=True))

    side = TILE_PX * FACTOR
    backend = Backend([FunctionNetwork(function, side) for function in (sharpen, identity, identity)])
    return Upscaler(backend, TILE_PX, 4, FACTOR, resize_filter="bicubic", color_fix="wavelet")


def _made(upscaler: Upscaler, pixels: np.ndarray, memory: TileMemory | None) -> np.ndarray:
    work = upscaler.start(pixels, memory=memory)
    return work.whole(work.rows())


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 60), st.integers(5, 60), st.data())
def test_frames_are_the_same_with_and_without(height: int, width: int, data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    frame = generator.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)
    memory, runs = TileMemory(), list[int]()
    upscaler = _upscaler(runs)
    for _ in range(4):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        frame = frame.copy()
        # A pixel that changes by one level changes every tile that it reaches.
        frame[top : top + data.draw(st.integers(0, 3)), left : left + 2, 1] ^= 1
        np.testing.assert_array_equal(_made(upscaler, frame, memory), _made(upscaler, frame, None))


@pytest.mark.parametrize(
    ("place", "changed"),
    [((0, 0), {(0, 0)}), ((19, 19), {(0, 0), (0, 1), (1, 0), (1, 1)}), ((27, 5), {(1, 0)})],
    ids=["corner", "where four tiles meet", "beside one alone"],
)
def test_tiles_that_a_pixel_reaches_are_computed(place: tuple[int, int], changed: set[tuple[int, int]]) -> None:
    # Two by two tiles: 0 to 16 and 12 to 28, and four pixels of context on either side.
    frame = np.zeros((28, 28, 3), np.uint8)
    frame[::3, ::5] = 200
    memory, runs = TileMemory(), list[int]()
    upscaler = _upscaler(runs)
    _made(upscaler, frame, memory)
    assert sum(runs) == 4 and memory.recalled == 0
    other = frame.copy()
    other[place] += 1
    _made(upscaler, other, memory)
    assert sum(runs) == 4 + len(changed) and memory.recalled == 4 - len(changed)
    _made(upscaler, other, memory)
    assert sum(runs) == 4 + len(changed) and memory.recalled == 4
