"""`intsr upscale` with films: what is kept, what is computed, what a killed run leaves, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from films import (
    CHAPTERS,
    HDR_MKV,
    MP4,
    PLAIN,
    SLOWED,
    FilmContent,
    FilmKind,
    kill_after_parts,
    read_film,
    resident_bytes_while_upscaling,
    scenes,
    write_film,
    write_sound,
)
from PIL import Image

from intsr.runtime.batch import films as batch_films
from intsr.runtime.batch.films import upscale_film
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine
from intsr.runtime.films.clock import RisingClock
from intsr.runtime.films.read import FilmReader
from intsr.runtime.films.types import FilmOptions
from intsr.runtime.upscaler import Work

FACTOR = 2
Intsr = Callable[..., tuple[int, str, str]]


def _film(folder: Path, kind: FilmKind = PLAIN, moving: int = 9, still: int = 5) -> Path:
    path = folder / f"film{kind.suffix}"
    write_film(path, scenes(moving, still, kind.size), kind)
    return path


@pytest.mark.parametrize("kind", [MP4, HDR_MKV], ids=["8 bits, turned, mp4", "10 bits, HDR, mkv"])
def test_all_but_the_pixels_is_kept(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, kind: FilmKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several parts, whose packets come out of order.
    monkeypatch.setattr(batch_films, "PART_FRAMES", 5)
    source, output = _film(tmp_path, kind), tmp_path / f"big{kind.suffix}"
    code, out, err = intsr("upscale", identity_engine, source, "-o", output, "--json")
    assert code == 0, err
    before, after = read_film(source), read_film(output)
    assert json.loads(out)["film"]["frames"] == len(before.frames) == len(after.frames) == 14
    # They differ only in how exactly the container can say them.
    assert after.times == before.times
    assert after.packets == before.packets and set(before.packets) == {"audio", "subtitle"}
    assert min(map(len, after.packets.values())) > 1
    assert after.languages == before.languages == {"audio": "deu", "subtitle": "fra"}
    assert after.metadata["title"] == "Two scenes"
    assert after.chapters == before.chapters and len(after.chapters) == len(CHAPTERS)
    assert (after.pixel_format, after.colours) == (before.pixel_format, before.colours)
    assert after.codec == before.codec
    is_hdr = kind is HDR_MKV
    assert ({"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"} <= after.side_data) is is_hdr
    # The turn is in the pixels now, and once.
    width, height = kind.size[::-1] if kind.rotation else kind.size
    assert after.frames[0].shape[0] * 2 // 3 == height * FACTOR and after.frames[0].shape[1] == width * FACTOR
    assert "DISPLAYMATRIX" not in after.side_data and ("DISPLAYMATRIX" in before.side_data) is bool(kind.rotation)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("kind", [MP4, HDR_MKV], ids=["8 bits", "10 bits"])
def test_frames_are_those_of_pictures(intsr: Intsr, identity_engine: Path, tmp_path: Path, kind: FilmKind) -> None:
    source = _film(tmp_path, kind)
    (tmp_path / "frames").mkdir()
    with FilmReader(source, FilmOptions()) as reader:
        for number, frame in enumerate(reader.frames(), 1):
            _save(tmp_path / "frames" / f"{number:03d}.png", frame.pixels)
    engine = (identity_engine, "--color-fix", "wavelet")
    assert intsr("upscale", *engine, tmp_path / "frames", "-o", tmp_path / "pictures")[0] == 0
    assert intsr("upscale", *engine, source, "-o", tmp_path / "numbered" / "%03d.png")[0] == 0
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [path.name for path in sorted((tmp_path / "numbered").iterdir())]
    for path in pictures:
        np.testing.assert_array_equal(_pixels(path), _pixels(tmp_path / "numbered" / path.name))
    # And the film is those, encoded: without loss, nothing is between them but the way to its colours.
    lossless = tmp_path / f"lossless{kind.suffix}"
    assert intsr("upscale", *engine, source, "-o", lossless, "--codec", "ffv1")[0] == 0
    for path, encoded in zip(pictures, read_film(lossless).frames, strict=True):
        np.testing.assert_array_equal(encoded, _encodable(path, kind))


def _save(path: Path, pixels: np.ndarray) -> None:
    from intsr.runtime.pictures.picture import ImageMetadata
    from intsr.runtime.pictures.writer import write_image

    write_image(path, pixels, None, ImageMetadata())


def _pixels(path: Path) -> np.ndarray:
    from intsr.runtime.pictures.reader import read_image

    return read_image(path).pixels


def _encodable(path: Path, kind: FilmKind) -> np.ndarray:
    from intsr.runtime.films.pyav import INTERPOLATION

    pixels = _pixels(path)
    frame = av.VideoFrame.from_ndarray(pixels, "rgb24" if pixels.dtype == np.uint8 else "rgb48le")
    matrix, *_, color_range = kind.colours
    how = {"dst_colorspace": matrix, "dst_color_range": color_range, "interpolation": INTERPOLATION}
    return frame.reformat(format=kind.pixel_format, **how).to_ndarray()


def _content_of(path: Path) -> tuple[object, ...]:
    return _content(read_film(path))


def _content(film: FilmContent) -> tuple[object, ...]:
    return film.times, [frame.tobytes() for frame in film.frames], film.packets


@pytest.mark.parametrize("parts", [(0,), (1,), (3, 4)], ids=["before a part", "in the second", "twice"])
def test_a_killed_run_goes_on(identity_engine: Path, tmp_path: Path, parts: tuple[int, ...]) -> None:
    # Without loss: x264 reads memory that nobody wrote where frames are as small as these.
    source = _film(tmp_path, PLAIN, moving=20, still=4)
    whole, output = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    command = [sys.executable, "-c", SLOWED, "upscale", identity_engine, source, "--codec", "ffv1", "-q"]
    subprocess.run([*command, "-o", whole], check=True)
    for count in parts:
        kill_after_parts([*command, "-o", output], output, count)
    done = subprocess.run([*command[:-1], "-o", output, "--json"], check=True, capture_output=True, text=True)
    film = json.loads(done.stdout)["film"]
    assert film["frames"] == 24 and film["resumed"] >= 5 * parts[-1]
    assert output.read_bytes() == whole.read_bytes()
    assert _content(read_film(output)) == _content(read_film(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv", "out.mkv", "whole.mkv"]


def _interrupted(engine_path: Path, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one part of a film that is being made."""
    monkeypatch.setattr(batch_films, "PART_FRAMES", 4)
    with open_engine(engine_path) as engine:

        def stop(frames, total):
            for count, frame in enumerate(frames):
                if count == 6:
                    raise RuntimeError
                yield frame

        with pytest.raises(RuntimeError):
            upscale_film(engine, Job(source, output), FileOptions(overwrite=False), stop)


def test_another_run_does_not_go_on(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = _film(tmp_path), tmp_path / "out.mkv"
    _interrupted(identity_engine, source, output, monkeypatch)
    state = (tmp_path / "out.mkv.parts" / "state.json").read_bytes()
    code, _, err = intsr("upscale", identity_engine, source, "-o", output, "--crf", "30", "--color-fix", "adain")
    assert (
        code == 1
        and "was begun with --color-fix none, another size, --codec, --crf or --preset" in err
        and "--overwrite" in err
    )
    assert (tmp_path / "out.mkv.parts" / "state.json").read_bytes() == state and not output.exists()
    code, out, _ = intsr("upscale", identity_engine, source, "-o", output, "--crf", "30", "--overwrite", "--json")
    assert code == 0 and json.loads(out)["film"] | {"frames_per_s": 0} == {
        "frames": 14,
        "resumed": 0,
        "frames_per_s": 0,
        "still_share": pytest.approx(4 / 14, abs=1e-4),
        "flicker": json.loads(out)["film"]["flicker"],
    }


def test_two_runs_do_not_share_parts(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import lock_descriptor

    source, output = _film(tmp_path), tmp_path / "out.mkv"
    _interrupted(identity_engine, source, output, monkeypatch)
    with (tmp_path / "out.mkv.parts" / "lock").open("w") as lock:
        assert lock_descriptor(lock.fileno(), blocking=False)
        code, _, err = intsr("upscale", identity_engine, source, "-o", output)
    assert code == 1 and "another process is making it" in err and not output.exists()


def test_still_content_runs_through_no_network(
    identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = scenes(4, 0, size=(40, 24))
    # The right third moves, then nothing does.
    partly = [np.concatenate([moving[0][:, :28], frame[:, 28:]], axis=1) for frame in moving]
    source = tmp_path / "film.mkv"
    write_film(source, [*partly, *[partly[-1]] * 6], FilmKind(codec="ffv1", pixel_format="bgr0", audio=""))
    with open_engine(identity_engine) as engine:
        runs = []
        run = engine.backend.run
        monkeypatch.setattr(engine.backend, "run", lambda x, *rest: runs.append(len(x)) or run(x, *rest))
        report = upscale_film(engine, Job(source, tmp_path / "out.mkv"), FileOptions())
        tiles = len(engine.start(partly[0]).plan.tiles)
    assert report.film is not None
    assert sum(runs) == round(10 * tiles * (1 - report.film.still_share)) < 0.4 * 10 * tiles
    # The first frame whole, of the next three some, of the others nothing.
    assert tiles < sum(runs) < 4 * tiles
    # Rounding, where a tile that moves is blended with one that does not.
    assert report.film.flicker is not None and report.film.flicker < 0.05


def test_a_part_of_a_film(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = _film(tmp_path, HDR_MKV, 20, 10), tmp_path / "part.mkv"
    assert intsr("upscale", identity_engine, source, "-o", output, "--start", "0.3", "--duration", "0.5")[0] == 0
    before, after = read_film(source), read_film(output)
    wanted = [at for at in before.times if 0.3 <= at < 0.8]
    assert [float(at) for at in after.times] == pytest.approx([float(at) - 0.3 for at in wanted], abs=1e-3)
    subtitles = [(float(at), text) for at, text in after.packets["subtitle"]]
    assert subtitles == [(pytest.approx(0.4, abs=1e-3), before.packets["subtitle"][1][1])]
    sound = [(float(at) - 0.3, data) for at, data in before.packets["audio"] if 0.3 <= at < 0.8]
    assert [data for _, data in after.packets["audio"]] == [data for _, data in sound]


def test_numbered_pictures_become_a_film(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    frames = scenes(5, 3)
    for number, pixels in zip((1, 2, 5, 6, 7, 8, 9, 10), frames, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame7.txt").write_text("no picture")
    output = tmp_path / "film.mkv"
    arguments = (identity_engine, tmp_path / "frame%d.png", "-o", output, "--fps", "30000/1001", "--codec", "ffv1")
    assert intsr("upscale", *arguments)[0] == 0
    film = read_film(output)
    assert [round(float(at) * 30000 / 1001, 1) for at in film.times] == [float(i) for i in range(8)]
    assert film.colours == (1, 1, 13, 1)


def test_numbered_pictures_stay_numbered(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    for number, pixels in enumerate(scenes(3, 0), 7):
        Image.fromarray(pixels).save(tmp_path / f"{number:04d}.png")
    output = tmp_path / "big" / "%02d.png"
    assert intsr("upscale", identity_engine, tmp_path / "%04d.png", "-o", output)[0] == 0
    assert sorted(path.name for path in output.parent.iterdir()) == ["07.png", "08.png", "09.png"]


def test_frames_that_are_there_stay(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = _film(tmp_path), tmp_path / "out" / "%03d.png"
    assert intsr("upscale", identity_engine, source, "-o", output)[0] == 0
    before = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    code, _, err = intsr("upscale", identity_engine, source, "-o", output)
    assert code == 2 and "already exists and 13 more" in err
    (output.parent / "004.png").unlink()
    (output.parent / "005.png").write_bytes(b"mine")
    code, out, _ = intsr("upscale", identity_engine, source, "-o", output, "--skip-existing", "--json")
    assert code == 0 and json.loads(out)["film"]["resumed"] == 13
    after = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    assert after == before | {"005.png": b"mine"}


def test_a_film_that_ends_early_is_made_as_far_as_it_goes(
    intsr: Intsr, identity_engine: Path, tmp_path: Path
) -> None:
    source = _film(tmp_path, HDR_MKV, 40, 0)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    output = tmp_path / "out.mkv"
    code, out, err = intsr("upscale", identity_engine, source, "-o", output, "--json")
    report = json.loads(out)
    assert code == 1 and report["status"] == "failed" and "ends after" in err and "has the rest" in err
    assert 5 < report["film"]["frames"] == len(read_film(output).frames) < 40
    assert not list(tmp_path.glob("*.parts"))


def test_odd_sizes_get_a_row_and_a_column(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = _film(tmp_path), tmp_path / "out.mkv"
    assert intsr("upscale", identity_engine, source, "-o", output, "--scale", "0.52")[0] == 0
    assert read_film(output).frames[0].shape == (18 * 3 // 2, 26)


def test_films_in_folders_are_passed_over_and_patterns_find_them(
    intsr: Intsr, identity_engine: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    _film(folder)
    Image.fromarray(scenes(1, 0)[0]).save(folder / "a.png")
    code, _, err = intsr("upscale", identity_engine, folder, "-o", tmp_path / "out")
    assert code == 0 and "1 film skipped: not read unless named, or by a pattern such as *.mkv" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    arguments = (folder / "*.mkv", folder / "a.png", "-o", tmp_path / "both", "--suffix", "_x2")
    assert intsr("upscale", identity_engine, *arguments)[0] == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["a_x2.png", "film_x2.mkv"]


def test_dry_run_counts_frames_and_refuses_what_the_run_would(
    intsr: Intsr, identity_engine: Path, tmp_path: Path
) -> None:
    source = _film(tmp_path, MP4)
    code, out, _ = intsr("upscale", identity_engine, source, "-o", tmp_path / "out.mp4", "--dry-run", "--json")
    planned = json.loads(out)
    assert code == 0 and (planned["width"], planned["height"], planned["frames"]) == (64, 96, 14)
    code, _, err = intsr("upscale", identity_engine, source, "-o", tmp_path / "out.webm", "--dry-run")
    assert code == 1 and "webm cannot hold its audio, which is aac" in err
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


REFUSED = {
    "no film": ("text.mp4", "out.mp4", (), "cannot be read as a film"),
    "no video stream": ("sound.mp4", "out.mp4", (), "has no video stream"),
    "not there": ("none.mp4", "out.mp4", (), "cannot be read as a film (No such file or directory)"),
    "no encoder": ("film.mkv", "out.mp4", ("--codec", "libx266"), "is no video encoder of this build"),
    "no video encoder": ("film.mkv", "out.mp4", ("--codec", "aac"), "is no video encoder of this build"),
    "container without the codec": ("film.mkv", "out.mp4", ("--codec", "prores_ks"), "mp4 cannot hold prores_ks"),
    "container without the sound": ("film.mkv", "out.webm", (), "webm cannot hold its audio, which is aac"),
    "no such option": ("film.mkv", "out.mkv", ("--codec", "ffv1", "--crf", "3"), "ffv1 has no such option"),
    "no such preset": ("film.mkv", "out.mkv", ("--preset", "warp"), "expected one of ultrafast"),
    "no such speed": (
        "film.mkv",
        "out.mkv",
        ("--codec", "libvpx-vp9", "--preset", "x"),
        "libvpx-vp9 has no such option",
    ),
    "picture for a film": ("film.mkv", "out.png", (), "numbered pictures such as frames/%06d.png"),
    "film for a picture": ("a.png", "out.mp4", (), "is a film"),
    "container that is not written": ("film.mkv", "out.avi", (), "expected a folder, or a name with"),
    "no frame there": ("film.mkv", "out.mkv", ("--start", "60"), "has no frame in the wanted time"),
    "container that would take it unread": (
        "film.mkv",
        "out.ts",
        ("--codec", "libvpx-vp9"),
        "mpegts cannot hold libvpx-vp9",
    ),
    "no number": ("film.mkv", "out.mkv", ("--start", "nan"), "is not a number of seconds"),
    "no rate": ("film.mkv", "out.mkv", ("--fps", "0"), "is not a number of frames a second"),
    "rate of a film": ("film.mkv", "out.mkv", ("--fps", "25"), "no input is numbered pictures"),
    "quality of a picture": ("a.png", "out.png", ("--crf", "20"), "no output is a film"),
    "numbered pictures that are none": ("n%d.png", "out.mp4", (), "0 pictures"),
    "numbered pictures into a folder": ("f%d.png", "folder/", (), "the name of a film for numbered pictures"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, case: tuple[str, str, tuple[str, ...], str]
) -> None:
    name, output, options, words = case
    if name == "film.mkv":
        _film(tmp_path)
    elif name == "sound.mp4":
        with av.open(str(tmp_path / name), "w") as container:
            sound = container.add_stream("aac", rate=48000)
            write_sound(container, sound, Fraction(1))
    elif name == "text.mp4":
        (tmp_path / name).write_text("not a film" * 1000)
    elif name in ("a.png", "f%d.png"):
        Image.fromarray(scenes(1, 0)[0]).save(tmp_path / name.replace("%d", "1"))
    before = sorted(tmp_path.iterdir())
    code, _, err = intsr("upscale", identity_engine, tmp_path / name, "-o", f"{tmp_path}/{output}", *options)
    assert code in (1, 2) and words in err, err
    assert err.count("\n") == 1 and err.startswith("intsr: error: ")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_part_of_this_build_is_told_before_the_first_frame(
    identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of hours must not fail at its end."""
    source = _film(tmp_path)
    with open_engine(identity_engine) as engine:
        monkeypatch.setattr(engine.backend, "run", lambda *_: pytest.fail("computed"))
        for output, codec in (("out.webm", None), ("out.mp4", "prores_ks"), ("out.mkv", "none")):
            options = FileOptions(film=FilmOptions(codec=codec))
            with pytest.raises(Exception, match=r"cannot hold|no video encoder"):
                upscale_film(engine, Job(source, tmp_path / output), options)


def test_without_the_library(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _film(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, err = intsr("upscale", identity_engine, source, "-o", tmp_path / "out.mkv")
    assert (
        code == 1 and err == 'intsr: error: films: av is not installed; install it with: pip install "intsr[video]"\n'
    )
    code, _, err = intsr("evaluate", source, source)
    assert code == 2 and "intsr[video]" in err


def test_no_room_for_a_film_leaves_the_old_one(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = _film(tmp_path), tmp_path / "out.mkv"
    output.write_bytes(b"mine")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch_films.PartWriter, "write", full)
    code, _, err = intsr("upscale", identity_engine, source, "-o", output, "--overwrite")
    assert code == 1 and "No space left on device" in err
    assert output.read_bytes() == b"mine"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames(identity_engine: Path, tmp_path: Path) -> None:
    source = tmp_path / "long.mkv"
    frames = scenes(40, 0)
    write_film(source, [frames[i % 40] for i in range(2000)], FilmKind(codec="ffv1", audio=""))
    early, late = resident_bytes_while_upscaling(identity_engine, source, tmp_path / "out.mkv", (100, 2000))
    assert late <= 1.05 * early, (early, late)
    assert len(read_film(tmp_path / "out.mkv").frames) == 2000


def test_an_interrupted_run_loses_no_frame(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a killed one it has the time to end its part."""
    source, output = _film(tmp_path, moving=60), tmp_path / "out.mkv"
    command = [
        sys.executable,
        "-c",
        SLOWED.replace("PART_FRAMES = 5", "PART_FRAMES = 50"),
        "upscale",
        identity_engine,
    ]
    process = subprocess.Popen([*command, source, "-o", output], stderr=subprocess.PIPE)
    while not (part := Path(f"{output}.parts", "000001.part")).exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and part.exists() and not output.exists()
    code, out, _ = intsr("upscale", identity_engine, source, "-o", output, "--json")
    assert code == 0 and 0 < json.loads(out)["film"]["resumed"] < 65
    assert len(read_film(output).frames) == 65


def test_a_copy_of_the_film_may_go_on(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a film is known by is its content, not its name or its age."""
    source, output = _film(tmp_path), tmp_path / "out.mkv"
    _interrupted(identity_engine, source, output, monkeypatch)
    moved = shutil.move(source, tmp_path / "renamed.mkv")
    code, out, _ = intsr("upscale", identity_engine, moved, "-o", output, "--json")
    assert code == 0 and json.loads(out)["film"]["resumed"] >= 4


@pytest.mark.parametrize("where", ["computing", "writing", "ending a part"])
@pytest.mark.parametrize("output", ["out.mkv", "out/%02d.png"])
def test_no_frame_behind_one_that_failed_is_written(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, where: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is on its way by then."""
    if output.endswith(".png") and where == "ending a part":
        pytest.skip("pictures have no parts")
    source = _film(tmp_path, PLAIN, moving=12, still=0)
    monkeypatch.setattr(batch_films, "PART_FRAMES", 3)
    arguments = ("upscale", identity_engine, source, *(() if "%" in output else ("--codec", "ffv1")), "-o")
    assert intsr(*arguments, tmp_path / "whole" / output)[0] == 0
    places = {
        "computing": (Work, "finish"),
        "writing": (batch_films, "write_image") if "%" in output else (batch_films.PartWriter, "write"),
        "ending a part": (batch_films.PartWriter, "close"),
    }
    owner, name = places[where]
    right, calls = getattr(owner, name), []

    def fail_once(*rest: object, **more: object) -> object:
        calls.append(1)
        # The first calls are the trial's.
        if len(calls) == 5:
            raise OSError("Input/output error") if where != "computing" else MemoryError
        return right(*rest, **more)

    with pytest.MonkeyPatch.context() as failing:
        failing.setattr(owner, name, fail_once)
        assert intsr(*arguments, tmp_path / output)[0] in (1, 4)
    assert intsr(*arguments, tmp_path / output, "--skip-existing")[0] == 0
    names = [Path(output).name] if "%" not in output else [f"{number:02d}.png" for number in range(1, 13)]
    for name in names:
        made, expected = (folder / Path(output).with_name(name) for folder in (tmp_path, tmp_path / "whole"))
        # Parts may end elsewhere.
        read = _content_of if "%" not in output else Path.read_bytes
        assert read(made) == read(expected), name


def _write_times(path: Path, times: list[int], base: Fraction, duration: int | None = None, rate: int = 25) -> None:
    """A film without sound whose frames have these times."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("mpeg4" if path.suffix == ".avi" else "ffv1", rate=rate)
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        film.time_base = film.codec_context.time_base = base
        for pixels, pts in zip(scenes(len(times), 0), times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = pts, base
            for packet in film.encode(frame):
                packet.duration = duration or packet.duration
                container.mux(packet)
        container.mux(film.encode(None))


def test_frames_close_together_and_a_long_last_one(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "film.mp4", tmp_path / "out.mp4"
    _write_times(source, [0, 30, 60, 61, 9000, 9001], Fraction(1, 90000), duration=4500)
    assert intsr("upscale", identity_engine, source, "-o", output)[0] == 0
    assert read_film(output).times == [Fraction(pts, 90000) for pts in (0, 30, 60, 61, 9000, 9001)]
    with av.open(str(source)) as before, av.open(str(output)) as after:
        assert after.streams.video[0].duration * after.streams.video[0].time_base == Fraction(9001 + 4500, 90000)
        assert before.streams.video[0].duration * before.streams.video[0].time_base == Fraction(9001 + 4500, 90000)


@pytest.mark.parametrize(("start", "duration", "first", "count"), [("0", "0.2", 0, 5), ("0.28", "0.04", 7, 1)])
def test_seconds_are_exact(
    intsr: Intsr, identity_engine: Path, tmp_path: Path, start: str, duration: str, first: int, count: int
) -> None:
    source = tmp_path / "film.mp4"
    _write_times(source, [512 * i for i in range(12)], Fraction(1, 12800))
    arguments = ("--start", start, "--duration", duration)
    assert intsr("upscale", identity_engine, source, "-o", tmp_path / "%02d.png", *arguments)[0] == 0
    assert intsr("upscale", identity_engine, source, "-o", tmp_path / "all" / "%02d.png")[0] == 0
    made = sorted(tmp_path.glob("*.png"))
    assert len(made) == count
    assert made[0].read_bytes() == (tmp_path / "all" / f"{first + 1:02d}.png").read_bytes()


def test_a_clock_that_begins_anew_goes_on() -> None:
    clock = RisingClock(Fraction(1, 100), 4)
    assert [clock.rising(time) for time in (100, 104, 108, 0, 4, 8)] == [100, 104, 108, 112, 116, 120]
    # Jitter is none of that, and moves nothing behind it.
    assert [clock.rising(time) for time in (11, 11, 10, 40)] == [123, 124, 125, 152]
    assert clock.after_last() == 156
    assert RisingClock(Fraction(1), 1).after_last() == 0


def test_films_joined_by_cat(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    part, source, output = tmp_path / "part.ts", tmp_path / "film.ts", tmp_path / "out.mkv"
    write_film(part, scenes(20, 0), FilmKind(".ts", "libx264"))
    source.write_bytes(part.read_bytes() * 2)
    code, _, err = intsr("upscale", identity_engine, source, "-o", output)
    assert code in (0, 1), err
    times = read_film(output).times
    assert len(times) >= 38 and float(min(later - earlier for earlier, later in pairwise(times))) > 0.01


def test_rgb_stays_the_same_colours(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "film.mov", tmp_path / "out.mov"
    write_film(source, scenes(3, 0), FilmKind(".mov", "png", "rgb24", audio="", colours=(0, 1, 13, 2)))
    assert intsr("upscale", identity_engine, source, "-o", output)[0] == 0
    with av.open(str(source)) as before, av.open(str(output)) as after:
        means = [next(film.decode(video=0)).to_ndarray(format="rgb24").mean((0, 1)) for film in (before, after)]
    np.testing.assert_allclose(*means, atol=2)
    assert read_film(output).colours[0] == 6


def test_what_is_not_kept_is_said(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "film.webm", tmp_path / "out.webm"
    kind = FilmKind(".webm", "libvpx-vp9", "yuva420p", audio="", options=(("auto-alt-ref", "0"),))
    write_film(source, scenes(3, 0), kind)
    code, _, err = intsr("upscale", identity_engine, source, "-o", output)
    assert code == 0 and "transparency dropped" in err
    with av.open(str(output)) as film:
        assert "alpha_mode" not in {name.lower() for name in film.streams.video[0].metadata}


def test_a_timecode_is_no_reason_to_fail(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "film.mov", tmp_path / "out.mov"
    with av.open(str(source), "w") as container:
        film = container.add_stream("mpeg4", rate=25)
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        film.metadata["timecode"] = "01:00:00:00"
        for pixels in scenes(4, 0):
            container.mux(film.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(film.encode(None))
    code, _, err = intsr("upscale", identity_engine, source, "-o", output)
    assert code == 0 and "(data) dropped" in err
    assert len(read_film(output).times) == 4


def test_a_file_that_is_really_called_so(intsr: Intsr, identity_engine: Path, tmp_path: Path) -> None:
    source = tmp_path / "100%d.mkv"
    write_film(source, scenes(3, 0), PLAIN)
    assert intsr("upscale", identity_engine, tmp_path / "*.mkv", "-o", tmp_path / "out", "--suffix", "_x2")[0] == 0
    assert len(read_film(tmp_path / "out" / "100%d_x2.mkv").times) == 3
