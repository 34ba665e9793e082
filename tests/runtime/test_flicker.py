"""Flicker: by hand on films of a few pixels, and as `intsr evaluate` tells it of two films."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from films import PLAIN, FilmKind, scenes, write_film
from PIL import Image

from intsr.runtime.measure.flicker import FlickerMeter
from intsr.runtime.measure.metrics import luma_from_pixels, psnr_db, ssim

Intsr = Callable[..., tuple[int, str, str]]
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="")


def _grey(*levels: int, size: int = 4) -> list[np.ndarray]:
    return [np.full((size, size, 3), level, np.uint8) for level in levels]


def _meter(original: list[np.ndarray], output: list[np.ndarray]) -> FlickerMeter:
    meter = FlickerMeter()
    for pair in zip(original, output, strict=True):
        meter.add(*pair)
    return meter


def test_by_hand() -> None:
    # The original stands still, then rises by 1, which still counts as still; the output moves by 5, then by 4.
    meter = _meter(_grey(100, 100, 101), _grey(100, 105, 101, size=8))
    assert meter.still_px == 2 * 64
    assert meter.flicker == (5 + 5) / 2


def test_an_output_that_follows_its_original_has_none() -> None:
    noise = np.random.default_rng(0).integers(0, 3, (6, 8, 8, 1)).astype(np.uint8)
    original = list(np.broadcast_to(noise + 100, (6, 8, 8, 3)))
    assert _meter(original, original).flicker == 0
    enlarged = [np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC)) for frame in original]
    # Whole levels are all that is between them.
    meter = _meter(original, enlarged)
    assert meter.flicker is not None and meter.flicker < 0.4 < meter.output_change / meter.still_px


def test_what_moves_does_not_count() -> None:
    original, output = _grey(50, 50), _grey(50, 50, size=8)
    original[1] = original[1].copy()
    original[1][0, 0] = 60
    output[1] = output[1].copy()
    # The pixel that moves, and its neighbours: their output may change as much as it will.
    output[1][:4, :4] = 250
    meter = _meter(original, output)
    # Bicubic carries a little of its change across.
    assert meter.still_px == 64 - 16 and 0 <= (before := meter.excess_change) < 10
    output[1][7, 7] = 98
    assert _meter(original, output).excess_change - before == pytest.approx(48, abs=0.1)


def test_nothing_stands_still() -> None:
    assert _meter(_grey(0, 100, 0), _grey(0, 100, 0)).flicker is None
    assert _meter(_grey(0), _grey(0)).flicker is None


def test_16_bits_and_repeats() -> None:
    deep = [frame.astype(np.uint16) * 257 for frame in _grey(100, 100)]
    meter = _meter(deep, [frame.astype(np.uint16) * 257 for frame in _grey(100, 104)])
    assert meter.flicker == 4
    meter.add_repeat()
    assert meter.flicker == 2


def test_evaluate_films(intsr: Intsr, tmp_path: Path) -> None:
    original = scenes(3, 4)
    changed = [frame.copy() for frame in original]
    for index, frame in enumerate(changed):
        frame[8:16, 8:16] = frame[8:16, 8:16] // 2 + 10 * (index % 2)
    for name, frames in (("hr.mkv", original), ("sr.mkv", changed)):
        write_film(tmp_path / name, frames, LOSSLESS)
    code, out, err = intsr("evaluate", tmp_path / "sr.mkv", tmp_path / "hr.mkv", "--json")
    assert code == 0, err
    lumas = [
        tuple(luma_from_pixels(one.astype(np.float64)) for one in pair)
        for pair in zip(changed, original, strict=True)
    ]
    found = json.loads(out)
    assert found["frames"] == 7
    assert found["psnr_y_db"] == pytest.approx(np.mean([psnr_db(*pair) for pair in lumas]))
    assert found["ssim_y"] == pytest.approx(np.mean([ssim(*pair) for pair in lumas]))
    # 64 of the 1,536 pixels that stand still in three pairs of frames change by 10 levels.
    assert found["flicker"] == pytest.approx(10 * 64 / (48 * 32), rel=0.01)
    code, out, _ = intsr("evaluate", tmp_path / "hr.mkv", tmp_path / "hr.mkv")
    assert code == 0 and "7 frames: PSNR-Y inf dB, SSIM-Y 1.0000, flicker 0.000 levels" in out


def test_films_that_do_not_fit_are_refused(intsr: Intsr, tmp_path: Path) -> None:
    write_film(tmp_path / "a.mkv", scenes(3, 0), PLAIN)
    write_film(tmp_path / "longer.mkv", scenes(4, 0), PLAIN)
    write_film(tmp_path / "larger.mkv", scenes(3, 0, (64, 32)), PLAIN)
    for name, words in (("longer.mkv", "has more frames than"), ("larger.mkv", "sizes are never changed to fit")):
        for pair in (("a.mkv", name), (name, "a.mkv")):
            code, _, err = intsr("evaluate", *(tmp_path / one for one in pair))
            assert code == 2 and words in err and err.count("\n") == 1
    code, _, err = intsr("evaluate", tmp_path / "a.mkv", tmp_path / "a.mkv", "--allow-missing")
    assert code == 2 and "--allow-missing" in err
