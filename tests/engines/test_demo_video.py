"""The bundled video model: what it reaches on a film of photographs it has not seen, and films through its engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from films import (
    MP4,
    PLAIN,
    SLOWED,
    FilmKind,
    kill_after_parts,
    read_film,
    resident_bytes_while_upscaling,
    scenes,
    write_film,
)

import intsr
from intsr.calib.data.made_pictures import smooth_tiles
from intsr.calib.data.pictures import tiles_from_pixels
from intsr.calib.models.video import load_video_model
from intsr.engines.verify.chunks import torch_video_backend
from intsr.runtime.engine import open_engine

Intsr = Callable[..., tuple[int, str, str]]


def test_it_is_small() -> None:
    folder = Path(intsr.__file__).parent / "models" / "demo_video"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 8_000_000


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_beats_bicubic_and_flickers_less_than_the_picture_model(intsr: Intsr, tmp_path: Path) -> None:
    code, out, err = intsr("demo", "--video", "-o", tmp_path, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["psnr_fp32_db"] > summary["psnr_bicubic_db"] + 0.3
    assert summary["psnr_int8_db"] > summary["psnr_fp32_db"] - 0.05
    assert summary["flicker_int8"] < 1.1 * summary["flicker_fp32"]
    assert summary["flicker_fp32"] < summary["flicker_picture_model"]
    film = read_film(tmp_path / "sr_int8.mp4")
    assert len(film.frames) == summary["frames"] and [float(at) for at in film.times][-1] == pytest.approx(16 / 12)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Int8, in small tiles."""
    folder = tmp_path_factory.mktemp("demo-video")
    write_film(folder / "seen.mkv", scenes(9, 0, (64, 64)), PLAIN)
    intsr_command = [sys.executable, "-m", "intsr"]
    calibrate = ["calibrate", "demo-video", "--method", "maxmin", "--images", folder / "seen.mkv", "--tile", "16"]
    subprocess.run([*intsr_command, *calibrate, "-o", folder / "ranges"], check=True)
    compile_it = ["compile", "demo-video", "--calibration", folder / "ranges", "--tile", "16"]
    subprocess.run([*intsr_command, *compile_it, "-o", folder / "demo-video.engine"], check=True)
    return folder / "demo-video.engine"


@pytest.mark.slow
def test_flat_and_smooth_pictures_are_as_full_precision_has_them(engine: Path) -> None:
    """Before the residual stream stayed float, and before there was a guard, white was 37 levels off."""
    model = load_video_model("demo-video")
    exact = torch_video_backend(model, None, 16, 9)
    with open_engine(engine, precision="f32") as opened:
        for name, pixels in smooth_tiles(16).items():
            tile = tiles_from_pixels(pixels, model.spec, 16)[:, :, None]
            clip = np.repeat(tile, 9, axis=2)
            got, expected = (np.concatenate(list(b.run_chunk(clip)), axis=2) for b in (opened.backend, exact))
            levels = (np.clip(got, -1, 1) - np.clip(expected, -1, 1)) * 127.5
            assert abs(levels.mean()) < 1, name
            assert np.sqrt(np.square(levels).mean()) < (3 if name == "text" else 1.5), name


@pytest.mark.slow
def test_a_killed_run_goes_on(engine: Path, tmp_path: Path) -> None:
    source, whole, output = (tmp_path / name for name in ("film.mkv", "whole.mkv", "out.mkv"))
    write_film(source, scenes(20, 4), PLAIN)
    command = [sys.executable, "-c", SLOWED, "upscale", engine, source, "--codec", "ffv1", "-q", "-o"]
    subprocess.run([*command, whole], check=True)
    for count in (1, 2):
        kill_after_parts([*command, output], output, count)
    subprocess.run([*command, output], check=True)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_all_but_the_pixels_is_kept(intsr: Intsr, engine: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "film.mp4", tmp_path / "big.mp4"
    write_film(source, scenes(9, 5), MP4)
    assert intsr("upscale", engine, source, "-o", output)[0] == 0
    before, after = read_film(source), read_film(output)
    assert after.times == before.times and len(after.frames) == 14
    assert after.packets == before.packets and set(before.packets) == {"audio", "subtitle"}
    assert after.chapters == before.chapters and after.languages == before.languages


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames(engine: Path, tmp_path: Path) -> None:
    source, frames = tmp_path / "long.mkv", scenes(40, 0, (16, 16))
    write_film(source, [frames[i % 40] for i in range(2000)], FilmKind(codec="ffv1", audio=""))
    early, late = resident_bytes_while_upscaling(engine, source, tmp_path / "out.mkv", (100, 2000))
    assert late <= 1.05 * early, (early, late)
    assert len(read_film(tmp_path / "out.mkv").frames) == 2000
