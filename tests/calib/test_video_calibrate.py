"""`intsr calibrate` of a video model: films, numbered pictures and pictures as clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from films import FilmKind, scenes, write_film
from PIL import Image

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import load_calibration
from intsr.calib.data.clips import calibration_clips, list_clips
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.video import calibrate_video
from intsr.errors import ImageError, UsageError

Command = Callable[..., tuple[int, str, str]]
TILE_PX, FRAMES = 8, 5
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="", size=(16, 12))


@pytest.fixture(scope="module")
def model(video_folder: Path) -> VideoModel:
    return load_video_model(str(video_folder))


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mkv", scenes(7, 0, LOSSLESS.size), LOSSLESS)
    return folder


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(scenes(count, 0, LOSSLESS.size)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_film_and_its_pictures_by_number_are_the_same_clips(model: VideoModel, films: Path, tmp_path: Path) -> None:
    numbered = write_pictures(tmp_path / "numbered", 7) / "%d.png"
    assert list_clips(films) == [films / "a.mkv"] and list_clips(numbered) == [numbered]
    film, pictures = (
        list(calibration_clips(list_clips(place), model.spec, TILE_PX, FRAMES)) for place in (films, numbered)
    )
    # 16 x 12 pixels in tiles of 8 x 8.
    assert len(film) == len(pictures) == 4 and film[0].shape == (1, 3, FRAMES, 32, 32)
    for one, other in zip(film, pictures, strict=True):
        torch.testing.assert_close(one, other)
    assert (film[0][:, :, 0] - film[0][:, :, 1]).abs().max() > 0.1


def test_a_short_film_stands_still_at_its_end(model: VideoModel, tmp_path: Path) -> None:
    write_film(tmp_path / "short.mkv", scenes(2, 0, LOSSLESS.size), LOSSLESS)
    (clip, *_) = calibration_clips([tmp_path / "short.mkv"], model.spec, TILE_PX, FRAMES)
    assert torch.equal(clip[:, :, 1:2].expand(-1, -1, 4, -1, -1), clip[:, :, 1:]) and not torch.equal(
        clip[:, :, 0], clip[:, :, 1]
    )


def test_what_cannot_be_read_is_named_and_passed_over(
    video_folder: Path, films: Path, tmp_path: Path, intsr: Command
) -> None:
    (films / "._a.mkv").write_bytes(b"of another system")
    (films / "b.mkv").write_bytes(b"no film")
    (films / "c.ts").mkdir()
    pictures = write_pictures(tmp_path / "pictures", 1)
    Image.new("RGBA", LOSSLESS.size, (0, 0, 0, 9)).save(pictures / "clear.png")
    given = ("calibrate", video_folder, "--method", "maxmin", "--parts", "transformer", "--no-guard")
    for place, name in ((films, "b.mkv"), (pictures, "clear.png")):
        whole = (*given, "--tile", TILE_PX, "--images", place, "-o", tmp_path / name)
        code, _, error = intsr(*whole)
        assert code == 0 and f"skipped: {place / name}: " in error and "1 of 2 skipped" in error, error
        assert load_calibration(tmp_path / name).pictures == 1


def test_pictures_are_clips_that_stand_still(model: VideoModel, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 2)
    clips = list(calibration_clips(list_clips(folder), model.spec, TILE_PX, FRAMES))
    assert len(list_clips(folder)) == 2 and len(clips) == 8
    assert torch.equal(clips[0], clips[0][:, :, :1].expand_as(clips[0]))


def test_what_is_no_clip_is_refused(model: VideoModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no picture"):
        list_clips(tmp_path / "empty")
    (tmp_path / "broken.mkv").write_bytes(b"nothing")
    with pytest.raises(ImageError):
        next(calibration_clips([tmp_path / "broken.mkv"], model.spec, TILE_PX, FRAMES))


def test_the_command(video_folder: Path, model: VideoModel, films: Path, tmp_path: Path, intsr: Command) -> None:
    given = ("calibrate", video_folder, "--method", "maxmin", "--tile", TILE_PX, "-o", tmp_path / "ranges")
    code, out, error = intsr(*given, "--images", films, "--json")
    assert code == 0, error
    calibration = load_calibration(tmp_path / "ranges")
    calibration.check_model(model.digest, "tiny-wan")
    assert json.loads(out)["sites"] == len(calibration.sites) and json.loads(out)["pictures"] == 1
    assert (calibration.method, calibration.parts) == ("maxmin", ("transformer", "vae"))
    assert all(np.isfinite(q.x_max) and q.x_max > q.x_min for q in calibration.sites.values())
    code, _, error = intsr(*given, "--images", films, "--bits", "w6a6")
    assert code == 2 and "holds a calibration with bits w8a8" in error
    code, out, _ = intsr("inspect", tmp_path / "ranges")
    assert code == 0 and "maxmin" in out


def test_the_transformer_alone(video_folder: Path, films: Path, tmp_path: Path, intsr: Command) -> None:
    given = ("calibrate", video_folder, "--method", "maxmin", "--tile", TILE_PX, "-o", tmp_path / "ranges")
    code, _, error = intsr(*given, "--images", films, "--parts", "transformer")
    assert code == 0, error
    calibration = load_calibration(tmp_path / "ranges")
    assert calibration.parts == ("transformer",) and all(
        site.startswith("transformer.") for site in calibration.sites
    )


def test_the_guard_widens_what_dark_films_say(model: VideoModel, tmp_path: Path) -> None:
    """Of a film of near-black frames alone, white would be out of every range."""
    dark = [frame // 32 for frame in scenes(7, 0, LOSSLESS.size)]
    write_film(tmp_path / "dark.mkv", dark, LOSSLESS)
    recipes = [Recipe("maxmin", parts=VIDEO_PARTS, tile_px=TILE_PX, guard=guard) for guard in (False, True)]
    alone, guarded = (calibrate_video(model, [tmp_path / "dark.mkv"], recipe).sites for recipe in recipes)
    for site, quantizer in guarded.items():
        assert quantizer.x_min <= alone[site].x_min and quantizer.x_max >= alone[site].x_max
    wider = sum(q.x_max - q.x_min > alone[site].x_max - alone[site].x_min for site, q in guarded.items())
    assert wider > len(alone) // 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--method: passionsr of a video model; expected one of maxmin, smoothquant, lsgquant"),
        (("--method", "maxmin", "--bits", "fp"), "--bits: fp"),
        (("--method", "maxmin", "--parts", "vae"), "--parts: 'vae'; expected transformer,vae or transformer"),
        (
            ("--method", "maxmin", "--parts", "unet,vae"),
            "--parts: 'unet,vae'; expected transformer,vae or transformer",
        ),
        (("--method", "maxmin", "--dry-run"), "--dry-run: together with a video model"),
        (("--method", "maxmin", "--tile", 6), "--tile: 6 pixels"),
    ],
)
def test_what_cannot_be_is_refused(
    video_folder: Path, films: Path, tmp_path: Path, intsr: Command, options: tuple[object, ...], message: str
) -> None:
    code, out, error = intsr("calibrate", video_folder, "--images", films, "-o", tmp_path / "ranges", *options)
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1
    assert not (tmp_path / "ranges").exists()
