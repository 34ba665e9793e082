"""Engines of video models in few bits, by every method: what they compute is what was calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import built_in_this_process
from films import FilmKind, write_two_films
from video_models import TRANSFORMER, VAE, simulated_chunk, write_video_model

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import save_calibration
from intsr.calib.data.clips import calibration_clips, list_clips
from intsr.calib.learn.method import VIDEO
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.methods import methods
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.observe.video import run_video_model
from intsr.calib.video import calibrate_video
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.engine import open_engine
from intsr.types import Bits

Intsr = Callable[..., tuple[int, str, str]]
TILE_PX, FRAMES = 8, 5
# Heads of 64: rotations fold. Of a film two tiles.
CONFIG = {**TRANSFORMER, "attention_head_dim": 64, "ffn_dim": 192}
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="", size=(16, 8))

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_children() -> Iterator[None]:
    with built_in_this_process():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_model(tmp_path_factory.mktemp("model"), CONFIG, VAE)


@pytest.fixture(scope="module")
def model(folder: Path) -> VideoModel:
    return load_video_model(str(folder))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_films(tmp_path_factory.mktemp("films"), LOSSLESS)


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
@pytest.mark.parametrize("method", methods(VIDEO))
def test_engines_compute_what_was_calibrated(
    intsr: Intsr, folder: Path, model: VideoModel, films: Path, tmp_path: Path, method: str, bits: str
) -> None:
    training = TrainingOptions(block_steps=0, joint_steps=8, batch=2)
    recipe = Recipe(method, Bits.parse(bits), VIDEO_PARTS, TILE_PX, crop_px=TILE_PX, crops=2, training=training)
    stages = tuple(replace(stage, rounds=1) for stage in recipe.stages.joint)
    plan = replace(recipe.stages, joint=stages)
    calibration = calibrate_video(model, list_clips(films), replace(recipe, plan=plan))
    save_calibration(calibration, tmp_path / "ranges")
    (x, *_) = calibration_clips(list_clips(films), model.spec, TILE_PX, FRAMES)
    simulated = simulated_chunk(model, calibration, x)
    with torch.no_grad():
        exact = run_video_model(model, x).numpy()
    for target in ("cpu", "onnxruntime"):
        engine = tmp_path / f"{target}.engine"
        given = ("--calibration", tmp_path / "ranges", "--tile", TILE_PX, "--frames", FRAMES, "--target", target)
        code, _, error = intsr("compile", folder, *given, "-o", engine)
        assert code == 0, error
        with open_engine(engine, precision="f32") as opened:
            assert isinstance(opened.backend, VideoBackend) and opened.manifest.bits == bits
            got = np.concatenate(list(opened.backend.run_chunk(x.numpy())), axis=2)
        from_simulation = np.square(got - simulated).mean()
        # Codes that fall the other way spread, at four bits the further.
        assert from_simulation < 0.5 * np.square(simulated.clip(-1, 1) - exact).mean(), target
        large = tmp_path / f"{target}.mkv"
        code, _, error = intsr("upscale", engine, films / "0.mkv", "-o", large, "--codec", "ffv1")
        assert code == 0 and large.is_file(), error


def test_a_dry_run_says_which_bits_a_network_has(intsr: Intsr, folder: Path, films: Path, tmp_path: Path) -> None:
    given = ("--method", "maxmin", "--bits", "w4a4", "--images", films, "--tile", TILE_PX)
    assert intsr("calibrate", folder, *given, "-o", tmp_path / "ranges")[0] == 0
    out = intsr("compile", folder, "--calibration", tmp_path / "ranges", "--tile", TILE_PX, "--dry-run")[1]
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "w4a4 in int8" in lines["transformer"] and "w8a8 in int8" in lines["encoder"]
