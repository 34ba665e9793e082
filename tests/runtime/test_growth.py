"""Engines that enlarge small pictures further first: the result has the size that it would have had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from networks import upscaler_of
from PIL import Image

from intsr.errors import UsageError
from intsr.runtime.engine import open_engine
from intsr.runtime.tiles.growth import grown_size, resized

# Twice as large; outputs of 64 pixels at least.
LEAST_PX, FACTOR = 64, 2


def by_pillow(pixels: np.ndarray, *sizes: tuple[int, int]) -> np.ndarray:
    """Bicubic to each of (width, height), one after the other."""
    image = Image.fromarray(pixels)
    for size in sizes:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("size", "grown"),
    [((32, 40), (32, 40)), ((16, 40), (32, 80)), ((20, 33), (32, 52)), ((100, 31), (103, 32)), ((8, 8), (32, 32))],
)
def test_the_shorter_side_reaches_it(size: tuple[int, int], grown: tuple[int, int]) -> None:
    assert grown_size(*size, FACTOR, LEAST_PX) == grown
    assert grown_size(*size, FACTOR, 0) == size


@pytest.mark.parametrize("grey", [False, True])
def test_small_pictures_go_through_larger(photo: np.ndarray, grey: bool) -> None:
    upscaler = upscaler_of(min_side_px=LEAST_PX)
    pixels = photo[:16, :20, 0] if grey else photo[:16, :20]
    result = upscaler.upscale(pixels)
    assert result.shape == (32, 40, *pixels.shape[2:])
    expected = by_pillow(pixels, (40, 32), (80, 64), (40, 32))
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(result, upscaler_of().upscale(pixels)), "it makes no difference here"
    large = photo[:40, :50]
    np.testing.assert_array_equal(upscaler.upscale(large), upscaler_of().upscale(large))


def test_sixteen_bits(photo: np.ndarray) -> None:
    pixels = photo[:16, :20].astype(np.uint16) * 257
    result = upscaler_of(min_side_px=LEAST_PX).upscale(pixels)
    assert (result.dtype, result.shape) == (np.uint16, (32, 40, 3))
    expected = by_pillow(photo[:16, :20], (40, 32), (80, 64), (40, 32)).astype(int) * 257
    assert np.abs(result.astype(int) - expected).max() <= 3 * 257
    halved = resized(pixels, (8, 10), "bicubic").astype(int)
    assert np.abs(halved - by_pillow(photo[:16, :20], (10, 8)).astype(int) * 257).max() <= 257


def test_rows_and_several_pictures(photo: np.ndarray) -> None:
    upscaler = upscaler_of(min_side_px=LEAST_PX)
    small, large = photo[:16, :20], photo[:40, :50]
    expected = [upscaler.upscale(each) for each in (small, large)]
    np.testing.assert_array_equal(np.concatenate(list(upscaler.upscale_rows(small))), expected[0])
    for got, wanted in zip(upscaler.upscale_many([small, large]), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_files_with_transparency(
    make_engine: Callable[..., Path], upscale: Callable[..., tuple[int, str, str]], photo: np.ndarray, tmp_path: Path
) -> None:
    engine = make_engine(min_side_px=LEAST_PX, family="hypir")
    alpha = np.tile(np.linspace(0, 255, 20, dtype=np.uint8), (16, 1))
    Image.fromarray(np.dstack([photo[:16, :20], alpha])).save(tmp_path / "in.png")
    code, _, err = upscale(tmp_path / "in.png", "-o", tmp_path / "out.png", engine=engine)
    assert code == 0, err
    made = np.asarray(Image.open(tmp_path / "out.png"))
    assert made.shape == (32, 40, 4)
    with open_engine(engine) as opened:
        np.testing.assert_array_equal(made[..., :3], opened.upscale(photo[:16, :20]))
    code, out, _ = upscale(tmp_path / "in.png", "-o", tmp_path / "x.png", "--dry-run", "--json", engine=engine)
    planned = json.loads(out)
    assert (code, planned["width"], planned["height"], planned["tiles"]) == (0, 40, 32, 9)


def test_what_is_too_small_is_told(
    make_engine: Callable[..., Path], upscale: Callable[..., tuple[int, str, str]], photo: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"picture: 1x9 pixels; expected at least 2 a side") as error:
        upscaler_of(min_side_px=LEAST_PX).upscale(photo[:9, :1])
    assert "outputs of 64 pixels and more" in str(error.value)
    Image.fromarray(photo[:9, :1]).save(tmp_path / "thin.png")
    arguments = tmp_path / "thin.png", "-o", tmp_path / "out.png"
    for more in ((), ("--dry-run",)):
        code, _, err = upscale(*arguments, *more, engine=make_engine(min_side_px=LEAST_PX))
        assert code == 1 and "thin.png: 1x9 pixels; expected at least 2 a side" in err, err
    assert not (tmp_path / "out.png").exists()
