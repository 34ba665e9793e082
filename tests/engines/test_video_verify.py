"""A video engine against torch: which frames are compared, what passes, and what is not put in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builds import built_in_this_process
from films import FilmKind, scenes, write_film
from video_engines import compile_video_engine
from video_models import FRAMES, SIDE_PX, TILE_PX, WIDE, WIDE_VAE, write_video_model

from intsr.calib.models.video import open_video_model
from intsr.engines.verify.chunks import ChunkNetworks, torch_video_backend
from intsr.engines.verify.reference import video_reference
from intsr.errors import EXIT_SOME_FAILED

Intsr = Callable[..., tuple[int, str, str]]
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="", size=(16, 12))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a.mkv", scenes(9, 0, LOSSLESS.size), LOSSLESS)
    return folder


def test_an_engine_agrees_with_diffusers_frame_by_frame(
    intsr: Intsr, video_engine: Path, video_folder: Path, films: Path
) -> None:
    given = ("verify", video_engine, "--against", video_folder, "--images", films, "--precision", "f32")
    code, out, error = intsr(*given, "--json")
    assert code == 0, error
    report = json.loads(out)
    assert [network["name"] for network in report["networks"]] == ["encoder", "transformer", "decoder"]
    assert min(network["psnr_db"] for network in report["networks"]) > 90
    assert report["end_to_end"]["psnr_db"] > 90 and report["passed"] and report["min_psnr_db"] == 60
    names = list(report["per_image_db"])
    assert names[:FRAMES] == [f"a.mkv, frame {index + 1}" for index in range(FRAMES)]
    # Eight made tiles that stand still.
    assert len(names) == 9 * FRAMES and names[-1].startswith("(made) ")
    worst = min(report["per_image_db"], key=report["per_image_db"].get)
    assert f"worst frame: {worst}, " in error and f"passed: all {9 * FRAMES} frames" in error


def test_an_engine_of_another_model_fails(intsr: Intsr, video_engine: Path, films: Path, tmp_path: Path) -> None:
    folder = write_video_model(tmp_path / "other")
    settings = json.loads((folder / "intsr_model.json").read_text())
    (folder / "intsr_model.json").write_text(json.dumps(settings | {"timestep": 499}))
    code, _, error = intsr("verify", video_engine, "--against", folder, "--images", films, "--limit", 1)
    assert code == EXIT_SOME_FAILED
    assert "dB on a.mkv, frame " in error and "at least 60 on every picture" in error


def test_what_belongs_to_pictures_is_refused(
    intsr: Intsr, video_engine: Path, tiny_folder: Path, films: Path
) -> None:
    given = ("verify", video_engine, "--images", films, "--against")
    code, _, error = intsr(*given, tiny_folder)
    assert code == 2 and "no video model" in error and error.count("\n") == 1
    code, _, error = intsr(*given, tiny_folder, "--lora", "a.pkl")
    assert code == 2 and "--lora: together with a video model; expected a picture model" in error


@pytest.mark.slow
@pytest.mark.parametrize(("bound_db", "exit_code"), [(60, 0), (500, EXIT_SOME_FAILED)])
def test_compile_puts_in_place_what_agrees(
    intsr: Intsr, video_folder: Path, films: Path, tmp_path: Path, bound_db: int, exit_code: int
) -> None:
    given = ("--bits", "fp", "--tile", TILE_PX, "--frames", 1, "--target", "onnxruntime", "--verify", films)
    with built_in_this_process():
        code, out, error = intsr(
            *("compile", video_folder, *given, "--min-psnr", bound_db, "-o", tmp_path / "wan.engine", "--json")
        )
    assert code == exit_code, error
    assert [path.name for path in tmp_path.iterdir()] == ([] if exit_code else ["wan.engine"])
    if exit_code:
        assert "no engine was written" in error
    else:
        agreement = json.loads(out)["agreement"]
        assert list(agreement) == ["encoder", "transformer", "decoder", "end_to_end", "worst"]
        assert agreement["worst"]["name"].endswith(", frame 1") and agreement["worst"]["psnr_db"] > 60


def test_torch_in_an_engines_place_is_diffusers(video_folder: Path) -> None:
    """Specialized, in chunks, and as its authors run it."""
    source = open_video_model(str(video_folder))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, FRAMES, SIDE_PX, SIDE_PX)).astype(np.float32)
    own = ChunkNetworks(torch_video_backend(source, None, TILE_PX, FRAMES))
    reference, value = video_reference(source, None, TILE_PX, FRAMES), x
    for name in reference.network_names:
        got, other = own.network(name), reference.network(name)
        assert (got.input.shape, got.output.shape) == (other.input.shape, other.output.shape)
        expected = other.run(value)
        made = got.run(value)
        np.testing.assert_allclose(made.clip(-1, 1) if name == "decoder" else made, expected, atol=1e-3)
        value = expected


@pytest.mark.slow
def test_an_integer_engine_agrees_with_its_calibration(intsr: Intsr, films: Path, tmp_path: Path) -> None:
    folder = write_video_model(tmp_path / "wide", WIDE, WIDE_VAE)
    ranges, engine = tmp_path / "ranges", tmp_path / "wan.engine"
    calibrated = intsr("calibrate", folder, "--method", "maxmin", "--images", films, "--tile", TILE_PX, "-o", ranges)
    assert calibrated[0] == 0, calibrated[2]
    compile_video_engine(folder, engine, "--calibration", ranges)
    found = []
    for against in ((ranges, "--model", folder), (folder,)):
        code, out, error = intsr(
            *("verify", engine, "--images", films, "--precision", "f32", "--json", "--against", *against)
        )
        assert code == 0, error
        found.append(json.loads(out)["end_to_end"]["psnr_db"])
    # Nearer to what it computes than to full precision.
    assert found[0] > found[1] > 30
    code, _, error = intsr("verify", engine, "--images", films, "--against", ranges)
    assert code == 2 and "a calibration without its model" in error
