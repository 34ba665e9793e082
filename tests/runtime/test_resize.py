"""The enlarged picture is Pillow's own, to the last bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from intsr.runtime.tiles.enlarge import FILTERS, Enlarger, enlarge, unit_channels, unit_part


def test_16_bits_keep_their_precision_and_stay_in_range() -> None:
    pixels = np.zeros((8, 8), np.uint16)
    pixels[:, 4:] = 65535
    enlarged = enlarge(pixels, 4, "lanczos")
    assert enlarged.shape == (32, 32)
    assert (enlarged.min(), enlarged.max()) == (0, 1)
    assert np.any(np.abs(enlarged * 255 - np.rint(enlarged * 255)) > 0.1)


def test_parts_and_channels_are_unit_floats(photo: np.ndarray) -> None:
    part = unit_part(photo, 3, 5, 7, 9)
    np.testing.assert_allclose(part, photo[3:10, 5:14].transpose(2, 0, 1) / 255, atol=1e-7)
    np.testing.assert_array_equal(np.stack(list(unit_channels(photo)))[:, 3:10, 5:14], part)
    grey = unit_part(photo[..., 1], 3, 5, 7, 9)
    np.testing.assert_array_equal(grey, np.stack([part[1]] * 3))
    assert len(list(unit_channels(photo[..., 1]))) == 3


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize(("factor", "shape"), [(2, (1, 1)), (4, (7, 90)), (3, (61, 43))])
def test_bands_have_the_bits_of_the_whole(name: str, factor: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for dtype, channels in ((np.uint8, (3,)), (np.uint8, ()), (np.uint8, (2,)), (np.uint16, (3,)), (np.uint16, ())):
        pixels = rng.integers(0, np.iinfo(dtype).max, (*shape, *channels), endpoint=True).astype(dtype)
        enlarger = Enlarger(pixels, factor, name)
        height, width = enlarger.size
        whole = enlarger.rows(0, height)
        assert whole.shape == (height, width, *channels)
        cuts = sorted({0, height, *rng.integers(0, height, 5).tolist()})
        parts = np.concatenate([enlarger.rows(top, bottom) for top, bottom in pairwise(cuts)])
        if channels == (3,):
            alone = Enlarger(np.ascontiguousarray(pixels[..., 1]), factor, name).rows(0, height)
            np.testing.assert_array_equal(whole[..., 1], alone)
        if dtype == np.uint8:
            np.testing.assert_array_equal(parts, whole)
        else:
            # A weight's last bit can differ where the factor is no power of two.
            np.testing.assert_allclose(parts, whole, atol=0 if factor in (2, 4) else 1e-7)
        if dtype == np.uint8 and channels != (2,):
            # Pillow's own, to the last bit.
            resized = Image.fromarray(pixels).resize((width, height), FILTERS[name])
            np.testing.assert_array_equal(whole, np.asarray(resized))
