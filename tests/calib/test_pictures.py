from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from intsr.calib.data.pictures import (
    MAX_TILES,
    calibration_batches,
    calibration_inputs,
    tiles_from_picture,
)
from intsr.calib.models.open import SRModel
from intsr.errors import ImageError, UsageError
from intsr.runtime.pictures.reader import list_pictures
from intsr.runtime.tiles.enlarge import Enlarger


def write_picture(path: Path, width: int, height: int) -> Path:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_picture_of_one_tile_is_pillows_resize(tiny_model: SRModel, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 32, 32)
    spec = replace(tiny_model.spec, resize_filter="bicubic")
    (batch,) = calibration_batches([path], spec, 32)
    expected = Image.open(path).resize((128, 128), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(
        batch[0].numpy(), np.asarray(expected).transpose(2, 0, 1) / np.float32(127.5) - 1, atol=1e-6
    )


@pytest.mark.parametrize(("size", "tiles"), [((20, 9), 1), ((64, 32), 2), ((300, 300), MAX_TILES)])
def test_every_size_gives_whole_tiles(tiny_model: SRModel, tmp_path: Path, size: tuple[int, int], tiles: int) -> None:
    (batch,) = calibration_batches([write_picture(tmp_path / "a.png", *size)], tiny_model.spec, 32)
    assert batch.shape == (tiles, 3, 128, 128)
    assert float(batch.min()) >= -1 and float(batch.max()) <= 1
    ((name, first),) = calibration_inputs([tmp_path / "a.png"], tiny_model.spec, 32)
    assert name == "a.png" and np.array_equal(first[0], batch[0].numpy())


def test_tiles_are_cut_from_the_enlarged_picture(
    tiny_model: SRModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, though only the tiles' own rows are enlarged."""
    path, side, asked = write_picture(tmp_path / "a.png", 300, 1000), 128, []
    rows = Enlarger.rows

    def watched(enlarger: Enlarger, top: int, bottom: int) -> NDArray[np.uint8]:
        asked.append(bottom - top)
        return rows(enlarger, top, bottom)

    monkeypatch.setattr(Enlarger, "rows", watched)
    got = tiles_from_picture(path, tiny_model.spec, 32)
    # 32 rows of 10 tiles; the last ones are aligned with the picture's ends.
    with Image.open(path) as picture:
        whole = np.asarray(picture.resize((1200, 4000), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.array_equal(got[0], whole[:, :side, :side] / np.float32(255) * np.float32(2) - np.float32(1))
    assert np.array_equal(got[-1], whole[:, -side:, -side:] / np.float32(255) * np.float32(2) - np.float32(1))
    assert asked == [side] * MAX_TILES


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        list_pictures(tmp_path / "none")
    (tmp_path / "._a.png").write_text("what other systems leave behind")
    with pytest.raises(UsageError, match="no picture"):
        list_pictures(tmp_path)


def test_a_broken_picture_is_named(tiny_model: SRModel, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        next(calibration_batches(list_pictures(tmp_path), tiny_model.spec, 32))
