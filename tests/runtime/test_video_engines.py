"""Engines that see several frames at once: chunks, what their networks remember, films and pictures through them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from films import PLAIN, FilmKind, scenes, write_film
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from video_engines import write_video_engine

from intsr.manifest import ChunkEntry
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.batch import films as batch_films
from intsr.runtime.engine import open_engine
from intsr.runtime.video.chunks import chunks_of, fade_in, first_chunk_for
from intsr.runtime.video.clip import ClipRun

Intsr = Callable[..., tuple[int, str, str]]
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="")


@pytest.fixture(scope="module", params=["onnxruntime", "cpu"])
def video_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_engine(tmp_path_factory.mktemp("video"), request.param)


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_every_frame_is_in_one_chunk_or_blended_from_two(count: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length // 2))
    chunks = list(chunks_of(range(count), length, overlap))
    weights = np.zeros(count)
    for chunk in chunks:
        assert chunk.frames == tuple(range(chunk.start, min(chunk.start + length, count)))
        own = np.ones(len(chunk.frames))
        if chunk.start:
            own[:overlap] = fade_in(overlap)[: len(own)]
        if not chunk.is_last:
            assert len(own) == length
            own[length - overlap :] *= 1 - fade_in(overlap)
        weights[chunk.start : chunk.start + len(own)] += own
    np.testing.assert_allclose(weights, 1, atol=1e-6)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    # None is made of frames that the one before has whole.
    assert all(chunk.start + overlap < count for chunk in chunks[1:])


@given(st.integers(0, 60), st.integers(1, 9), st.data())
def test_a_frame_depends_on_its_chunk_and_the_one_before(frame: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length // 2))
    first = first_chunk_for(frame, length, overlap)
    starts = [chunk.start for chunk in chunks_of(range(frame + 1 + length), length, overlap)]
    of_frame = [start for start in starts if start <= frame < start + length]
    assert first in starts and first == min(of_frame)


def test_frames_are_those_of_the_enlarged_film(
    intsr: Intsr, video_engine: Path, identity_engine: Path, tmp_path: Path
) -> None:
    source = tmp_path / "film.mkv"
    write_film(source, scenes(17, 5), LOSSLESS)
    for engine, name in ((video_engine, "video"), (identity_engine, "pictures")):
        assert intsr("upscale", engine, source, "-o", tmp_path / name / "%03d.png")[0] == 0
    names = [f"{number:03d}.png" for number in range(1, 23)]
    assert sorted(path.name for path in (tmp_path / "video").iterdir()) == names
    for name in names:
        video, picture = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("video", "pictures"))
        np.testing.assert_allclose(video.astype(int), picture, atol=1)


def test_what_networks_remember_matters(tmp_path: Path) -> None:
    """The engine of these tests would not tell otherwise."""
    with open_engine(write_video_engine(tmp_path)) as engine:
        backend = engine.backend
        assert isinstance(backend, VideoBackend)
        x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 9, 32, 32)).astype(np.float32)
        np.testing.assert_allclose(np.concatenate(list(backend.run_chunk(x)), axis=2), x, atol=1e-5)
        decode = backend.network("decoder_next").run_all
        (latent, _) = backend.network("encoder_start").run_all([x[:, :, :1]])
        right, wrong = (decode([latent, memory])[0] for memory in (x[:, :, :1], x[:, :, 1:2]))
        assert np.abs(right - wrong).max() > 0.1


@pytest.mark.parametrize("done", [1, 3, 5, 6, 8, 13])
def test_a_run_that_goes_on_makes_the_same_frames(
    intsr: Intsr, tmp_path: Path, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = write_video_engine(tmp_path, color_fix="adain")
    source = tmp_path / "film.mkv"
    write_film(source, scenes(20, 0), LOSSLESS)
    monkeypatch.setattr(batch_films, "PART_FRAMES", 1)
    arguments = ("upscale", engine, source, "--codec", "ffv1", "-o")
    assert intsr(*arguments, tmp_path / "whole.mkv")[0] == 0
    write = batch_films._PartsSink.write
    calls: list[int] = []

    def stop(self, *rest: object) -> None:  # type: ignore[no-untyped-def]
        if len(calls) == done:
            raise OSError("stopped")
        calls.append(1)
        write(self, *rest)

    with pytest.MonkeyPatch.context() as stopping:
        stopping.setattr(batch_films._PartsSink, "write", stop)
        assert intsr(*arguments, tmp_path / "out.mkv")[0] == 1
    code, out, err = intsr(*arguments, tmp_path / "out.mkv", "--json")
    assert code == 0, err
    assert json.loads(out)["film"]["resumed"] == done
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()


def test_a_picture_is_a_clip_that_stands_still(
    intsr: Intsr, video_engine: Path, identity_engine: Path, tmp_path: Path
) -> None:
    Image.fromarray(scenes(1, 0, (50, 37))[0]).save(tmp_path / "a.png")
    for engine, name in ((video_engine, "video.png"), (identity_engine, "picture.png")):
        assert intsr("upscale", engine, tmp_path / "a.png", "-o", tmp_path / name)[0] == 0
    video, picture = (np.asarray(Image.open(tmp_path / name)) for name in ("video.png", "picture.png"))
    np.testing.assert_allclose(video.astype(int), picture, atol=1)


def test_pictures_that_are_there_stay(intsr: Intsr, tmp_path: Path) -> None:
    engine, source = write_video_engine(tmp_path), tmp_path / "film.mkv"
    write_film(source, scenes(14, 0), PLAIN)
    arguments = ("upscale", engine, source, "-o", tmp_path / "out" / "%02d.png")
    assert intsr(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for name in ("05.png", "06.png", "11.png"):
        (tmp_path / "out" / name).unlink()
    code, out, _ = intsr(*arguments, "--skip-existing", "--json")
    assert code == 0 and json.loads(out)["film"]["resumed"] == 4 and json.loads(out)["film"]["frames"] == 14
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_adain_has_one_set_of_statistics_a_chunk(tmp_path: Path) -> None:
    frames = scenes(9, 0)
    with open_engine(write_video_engine(tmp_path)) as engine:
        (chunk,) = chunks_of(frames, 9, 3)
        made = np.stack(list(ClipRun(engine, 3, color_fix="adain").finished(chunk))).astype(float)
        plain = np.stack(list(ClipRun(engine, 3, color_fix="none").finished(chunk))).astype(float)
    # It gives all frames together the mean that they have already, and none its own.
    assert np.abs(made - plain).max() <= 1


def test_chunks_that_no_model_has_are_refused() -> None:
    for frames, overlap in ((8, 0), (9, 5), (9, -1)):
        with pytest.raises(ValueError, match=r"4 n \+ 1|at most half"):
            ChunkEntry(frames, 4, overlap)


def test_numbered_pictures_are_a_film_and_keep_their_numbers(intsr: Intsr, tmp_path: Path) -> None:
    engine, film = write_video_engine(tmp_path), scenes(13, 0)
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(film, 1001):
        Image.fromarray(frame).save(tmp_path / "in" / f"{number}.png")
    # One that cannot be read is left out, and shifts nothing.
    (tmp_path / "in" / "1005.png").write_bytes(b"no picture")
    arguments = ("upscale", engine, tmp_path / "in" / "%d.png", "-o", tmp_path / "out" / "%d.png", "--json")
    code, out, _ = intsr(*arguments)
    (report,) = map(json.loads, out.splitlines())
    assert code == 1 and "1005.png" in report["error"] and report["film"]["frames"] == 12
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(made) == [f"{number}.png" for number in range(1001, 1014) if number != 1005]
    run = ClipRun(open_engine(engine), 3)
    frames = [frame for place, frame in enumerate(film) if place != 4]
    expected = [frame for chunk in chunks_of(frames, 9, 3) for frame in run.finished(chunk)]
    for name, frame in zip(sorted(made), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / name)), frame)
    Image.fromarray(film[4]).save(tmp_path / "in" / "1005.png")
    for name in ("1003.png", "1010.png"):
        (tmp_path / "out" / name).unlink()
    code, out, _ = intsr(*arguments, "--skip-existing")
    assert code == 0 and json.loads(out)["film"] | {"frames": 13, "resumed": 2} == json.loads(out)["film"]
    assert len(list((tmp_path / "out").iterdir())) == 13
