"""Exact numbers for measuring: 16-bit ones on the scale of 8-bit ones, transparency refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_pixels
from intsr.runtime.pictures.writer import write_image

RNG = np.random.default_rng(3)


def test_eight_bits_are_read_as_they_are(tmp_path: Path) -> None:
    for pixels in (RNG.integers(0, 256, (5, 7, 3), np.uint8), RNG.integers(0, 256, (5, 7), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        got = read_pixels(tmp_path / "a.png")
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, pixels)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_sixteen_bits_keep_their_fractions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 65536, shape, np.uint16)
    write_image(tmp_path / "a.png", values, np.full((5, 7), 65535, np.uint16), ImageMetadata())
    np.testing.assert_allclose(read_pixels(tmp_path / "a.png"), values / 257, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path, dtype: type) -> None:
    pixels, alpha = RNG.integers(0, 256, (5, 7, 3)).astype(dtype), np.full((5, 7), np.iinfo(dtype).max, dtype)
    write_image(tmp_path / "a.png", pixels, alpha, ImageMetadata())
    assert read_pixels(tmp_path / "a.png").shape == (5, 7, 3)
    alpha[2, 3] -= 1
    write_image(tmp_path / "a.png", pixels, alpha, ImageMetadata())
    with pytest.raises(ImageError, match="transparent pixels"):
        read_pixels(tmp_path / "a.png")
