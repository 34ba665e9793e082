"""Methods that search and train, on the transformer of a tiny video model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from films import FilmKind, scenes, write_two_films
from PIL import Image

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.calibration.types import Calibration, PhaseName
from intsr.calib.data.clips import crops_from_clips, list_clips
from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import Stage
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.learn.volts import CONVERGENCE, FROZEN, LIGHT
from intsr.calib.learn.walk import converged
from intsr.calib.methods.lsgquant import METHOD, TRAINED
from intsr.calib.models.families.wan import VIDEO_PARTS, bits_of_video_site
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.video import calibrate_video, steps_of_video_recipe
from intsr.errors import CalibrationError, UsageError
from intsr.types import Bits

Command = Callable[..., tuple[int, str, str]]
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="", size=(16, 16))
TRAINING = TrainingOptions(block_steps=0, joint_steps=8, batch=2)
RECIPE = Recipe("lsgquant", Bits(4, 4), VIDEO_PARTS, 8, crop_px=8, crops=4, training=TRAINING)
# One round, or the test takes as long as it converges; from LSQ's start, which leaves much to learn.
ROUGH = replace(METHOD, start=RangeInit("lsq"), searched_rotations=False)
ONE_ROUND = replace(ROUGH, joint=tuple(replace(stage, rounds=1) for stage in METHOD.joint))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(video_folder: Path) -> VideoModel:
    return load_video_model(str(video_folder))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_films(tmp_path_factory.mktemp("films"), LOSSLESS)


@pytest.fixture(scope="module")
def learned(model: VideoModel, films: Path) -> Calibration:
    return calibrate_video(model, list_clips(films), replace(RECIPE, plan=ONE_ROUND))


def test_stages_of_a_tier_train_its_layers_alone(model: VideoModel, films: Path, learned: Calibration) -> None:
    tiers = {site: sensitivity.tier for site, sensitivity in learned.sensitivity.items()}
    assert {FROZEN, LIGHT, CONVERGENCE} == set(tiers.values())
    assert tiers.keys() == {site for site in learned.sites if site.startswith("transformer.")}
    assert [PhaseName.parse(name).stage for name in learned.curves] == ["light", "convergence"]
    start = calibrate_video(model, list_clips(films), replace(RECIPE, plan=replace(ROUGH, joint=())))
    assert not start.curves
    for site, quantizer in learned.sites.items():
        before = start.sites[site]
        if site.startswith("vae.") or tiers[site] == FROZEN:
            assert quantizer == before, site
        else:
            # Codes, since weights have changed; the branch and the range with them.
            assert quantizer.weight_codes is not None and before.weight_codes is None, site
    trained = [s for s in tiers if tiers[s] == CONVERGENCE]
    assert any(not np.array_equal(learned.sites[s].branch_up, start.sites[s].branch_up) for s in trained)  # type: ignore[arg-type]


def test_held_out_clips_judge(learned: Calibration) -> None:
    losses = [[row[2] for row in curve] for curve in learned.curves.values()]
    for curve in losses:
        assert np.isfinite(curve).all() and min(curve) <= curve[0]
    # A stage begins where the one before was best.
    assert losses[1][0] == pytest.approx(min(losses[0]), rel=1e-5)
    assert min(losses[1]) < losses[0][0]


def test_a_round_that_gained_too_little_is_told() -> None:
    assert converged([[0, 1.0, 1.0], [5, 0.9, 0.99]]) and not converged([[0, 1.0, 1.0], [5, 0.9, 0.9], [9, 0.9, 1.1]])


def test_the_vae_has_eight_bits_and_the_transformer_what_was_asked_for(learned: Calibration) -> None:
    for site, quantizer in learned.sites.items():
        bits = (quantizer.weight_bits, quantizer.activation_bits)
        assert bits == ((8, 8) if site.startswith("vae.") else (4, 4)), site
        assert (quantizer.branch_up is None) is site.startswith("vae."), site
    assert bits_of_video_site("vae.decoder.conv_in", Bits(7, 8)) == (7, 8)


def test_what_was_learned_is_written_and_read(learned: Calibration, tmp_path: Path, intsr: Command) -> None:
    save_calibration(learned, tmp_path / "c")
    read = load_calibration(tmp_path / "c")
    assert read.digest() == learned.digest() and dict(read.sensitivity) == dict(learned.sensitivity)
    code, out, _ = intsr("inspect", tmp_path / "c", "--layers")
    assert code == 0 and "frozen" in out.split("trained")[1].splitlines()[0] and "sensitivity" in out
    assert intsr("report", tmp_path / "c", "-o", tmp_path / "r.html")[0] == 0
    page = (tmp_path / "r.html").read_text()
    assert "Sensitivity" in page and "Transformer" in page and CONVERGENCE in page


def test_interrupted_and_started_again_it_ends_the_same(
    model: VideoModel, films: Path, learned: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, clips = replace(RECIPE, plan=ONE_ROUND), list_clips(films)
    monkeypatch.setattr("intsr.calib.learn.journal.CHECKPOINT_SECONDS", 0.0)
    left = 3

    def stop(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_video(model, clips, recipe, report=stop, work=tmp_path / "work")
    again = calibrate_video(model, clips, recipe, work=tmp_path / "work")
    assert again.digest() == learned.digest()


def test_numbered_pictures_are_known_by_what_they_hold(model: VideoModel, tmp_path: Path) -> None:
    clips = [tmp_path / f"{name}-%d.png" for name in "ab"]
    frames = scenes(9, 0, LOSSLESS.size)
    for name in "ab":
        for number, pixels in enumerate(frames):
            Image.fromarray(pixels).save(tmp_path / f"{name}-{number}.png")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_video(model, clips, RECIPE, report=stop, work=tmp_path / "work")
    Image.fromarray(frames[0]).save(tmp_path / "b-8.png")
    with pytest.raises(CalibrationError, match="resuming a calibration"):
        calibrate_video(model, clips, RECIPE, work=tmp_path / "work")


def test_crops_are_of_every_clip_and_one_is_held_out(model: VideoModel, films: Path) -> None:
    crops = crops_from_clips(list_clips(films), model.spec, crop_px=8, count=4, batch=2, frames=9)
    assert len(crops.train) == 4 and len(crops.held_out) == 2 and crops.train[0].shape == (1, 3, 9, 32, 32)
    assert not any(torch.equal(a, b) for a in crops.train for b in crops.held_out)
    with pytest.raises(UsageError, match="at least 2, of which one is held out"):
        crops_from_clips(list_clips(films)[:1], model.spec, crop_px=8, count=4, batch=2, frames=9)


def test_a_meter_knows_how_many_steps_there_are(model: VideoModel) -> None:
    few = replace(RECIPE, training=TrainingOptions(block_steps=3, joint_steps=10))
    stages = (Stage("a", TRAINED),)
    assert steps_of_video_recipe(model, replace(few, plan=replace(METHOD, joint=stages))) == 10
    assert steps_of_video_recipe(model, replace(few, plan=replace(METHOD, block=stages, joint=()))) == 3 * 2
    assert steps_of_video_recipe(model, Recipe("maxmin", Bits(8, 8), VIDEO_PARTS)) == 0


def test_nothing_is_kept_of_a_pass(model: VideoModel, films: Path, tmp_path: Path) -> None:
    recipe = Recipe("smoothquant", Bits(4, 4), VIDEO_PARTS, 8)
    calibration = calibrate_video(model, list_clips(films), recipe, work=tmp_path / "work")
    assert not (tmp_path / "work").exists() and Journal(None, {}).folder is None
    for site, quantizer in calibration.sites.items():
        assert (quantizer.let_scale is None) is site.startswith("vae."), site
    q, k, v = (calibration.sites[f"transformer.blocks.0.attn1.to_{name}"].let_scale for name in "qkv")
    assert q is not None and np.array_equal(q, k) and np.array_equal(q, v)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "maxmin", "--rank", 4), "--rank: together with --method maxmin"),
        (("--method", "maxmin", "--joint-steps", 4), "--joint-steps: together with --method maxmin, which takes"),
        (("--method", "lsgquant", "--lpips", "a.pt"), "--lpips: together with a video model"),
        (("--method", "lsgquant", "--crop", 6), "--crop: 6"),
        (("--method", "lsgquant", "--bits", "w4a4 vae.*=w6a6"), "a rule for 'vae.*', which no layer is called"),
        (("--method", "qartsr"), "--method: qartsr of a video model; expected one of maxmin, smoothquant"),
    ],
)
def test_what_cannot_be_is_refused(
    video_folder: Path, films: Path, tmp_path: Path, intsr: Command, options: tuple[object, ...], message: str
) -> None:
    code, out, error = intsr("calibrate", video_folder, "--images", films, "-o", tmp_path / "ranges", *options)
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "ranges").exists()


@pytest.mark.parametrize("method", ["lsgquant", "smoothquant"])
def test_picture_models_have_other_methods(tiny_folder: Path, tmp_path: Path, intsr: Command, method: str) -> None:
    code, _, error = intsr("calibrate", tiny_folder, "--method", method, "--images", tmp_path, "-o", tmp_path / "c")
    assert code == 2 and f"--method: {method} of a picture model; expected one of maxmin" in error
