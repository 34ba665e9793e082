"""What stands behind the window, without it: names, sessions, turns, and results as of `intsr upscale`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from app_pictures import write_huge_header, write_pictures
from PIL import Image
from video_engines import write_video_engine

from intsr.errors import BuildError, IntsrError, MissingLibraryError, UsageError
from intsr.runtime.app import demonstration, session
from intsr.runtime.app.choice import Choice, engines_from_paths
from intsr.runtime.app.session import Picture, Session, Sessions, check_name, first_settings
from intsr.runtime.app.studio import Studio, is_wanted
from intsr.runtime.app.words import facts_html, queue_html, summary_html

# A screenshot of macOS at 10 in the morning, a family, a wide space, and a mark of right-to-left scripts.
SYSTEMS_NAMES = ("Screenshot at 10.00.00\u202fAM.png", "👨\u200d👩\u200d👧.png", "全\u3000角.png", "\u200eא.png")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def choices(identity_engine: Path) -> dict[str, Choice]:
    return engines_from_paths([identity_engine], lambda text: None)


@pytest.fixture
def sessions(tmp_path: Path, choices: dict[str, Choice]) -> Sessions:
    folder = tmp_path / "window"
    folder.mkdir()
    return Sessions(folder, first_settings(choices["identity"]))


@pytest.fixture
def studio(choices: dict[str, Choice], sessions: Sessions) -> Iterator[Studio]:
    opened = Studio(choices, sessions, threads=1)
    yield opened
    opened.close()


def brought(to: Session, path: Path, name: str = "") -> Picture:
    """A picture as the window takes it."""
    picture = to.add(name or path.name)
    picture.source.write_bytes(path.read_bytes())
    to.keep(picture)
    return picture


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def saved(path: Path, width: int, height: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_results_are_those_of_upscale(
    studio: Studio, sessions: Sessions, upscale: Run, photo: np.ndarray, tmp_path: Path
) -> None:
    mine = sessions.open()
    paths = write_pictures(tmp_path / "in", photo)
    pictures = [brought(mine, path) for path in paths]
    studio.start(mine)
    wait_for(lambda: not mine.is_busy)
    assert [picture.status for picture in pictures] == ["done", "done", "failed", "done", "done"]
    assert pictures[2].error.startswith("torn.png: cannot be read") and "result" not in pictures[2].error
    for path, picture in zip(paths, pictures, strict=True):
        expected = tmp_path / "out" / path.name
        assert upscale(path, "-o", expected)[0] == (0 if picture.status == "done" else 1)
        if picture.result is not None:
            assert picture.result.read_bytes() == expected.read_bytes()
    assert Image.open(tmp_path / "out" / paths[0].name).getexif()[0x010F] == "a camera"
    assert [name for name, _ in mine.results()] == [
        *("turned & tagged_x2.jpg", "clear_x2.png", "grey_x2.webp", "scan_x2.tif"),
    ]


def test_other_settings_make_it_again(
    studio: Studio, sessions: Sessions, upscale: Run, photo_path: Path, tmp_path: Path
) -> None:
    mine = sessions.open()
    picture = brought(mine, photo_path)
    studio.start(mine)
    wait_for(lambda: picture.status == "done")
    first = picture.result
    assert not is_wanted(picture, mine.settings)
    mine.settings = session.Settings("identity", 3.0, "adain", "jpg")
    assert is_wanted(picture, mine.settings)
    studio.start(mine)
    wait_for(lambda: picture.status == "done" and not mine.is_busy)
    expected = tmp_path / "expected.jpg"
    assert upscale(photo_path, "-o", expected, "-s", "3", "--color-fix", "adain")[0] == 0
    assert picture.result is not None and picture.result.read_bytes() == expected.read_bytes()
    assert first is not None and not first.exists()
    assert [name for name, _ in mine.results()] == ["photo_x3.jpg"]


def test_it_says_before_what_it_takes(studio: Studio, sessions: Sessions, photo_path: Path) -> None:
    mine = sessions.open()
    picture = brought(mine, photo_path)
    wait_for(lambda: studio.knows("identity"))
    plan = studio.plan(picture, mine.settings)
    assert (plan.width, plan.height, plan.tiles) == (142, 106, 30)
    assert plan.seconds is not None and 0 < plan.seconds < 60
    assert plan.memory_bytes is not None and 50e6 < plan.memory_bytes < 20e9
    assert "71×53 → 142×106, 30 tiles, about" in queue_html(mine, studio)
    assert "1 picture to make: about" in summary_html(mine, studio)


def test_it_ends_between_two_tiles(studio: Studio, sessions: Sessions, tmp_path: Path) -> None:
    mine = sessions.open()
    large = brought(mine, saved(tmp_path / "large.png", 1000, 1000))
    small = brought(mine, saved(tmp_path / "small.png", 20, 20))
    studio.start(mine)
    wait_for(lambda: large.tiles_done > 5)
    assert "being made" in queue_html(mine, studio)
    said = summary_html(mine, studio)
    assert "2 to go, about" in said and "large.png: tile " in said and '<progress max="1" value="0.' in said
    studio.stop(mine)
    wait_for(lambda: not mine.is_busy)
    assert 5 < large.tiles_done < large.tiles and (large.status, small.status) == ("stopped", "stopped")
    assert [path.name for path in mine.folder.rglob("*") if path.is_file()] == ["source.png"] * 2
    mine.remove(large)
    studio.start(mine)
    wait_for(lambda: small.status == "done")
    assert not large.source.exists()


def test_two_browsers_take_turns(studio: Studio, sessions: Sessions, tmp_path: Path) -> None:
    mine, other = sessions.open(), sessions.open()
    path = saved(tmp_path / "a.png", 120, 120)
    pictures = [[brought(one, path, f"{name}{i}.png") for i in range(3)] for one, name in ((mine, "m"), (other, "o"))]
    with mine.lock:
        studio.start(mine)
        studio.start(other)
        assert studio.ahead(mine) == 1
    wait_for(lambda: not mine.is_busy and not other.is_busy)
    order = sorted((picture for some in pictures for picture in some), key=lambda picture: picture.started)
    names = "".join(picture.name[0] for picture in order)
    assert names in ("momomo", "omomom")
    assert {name for name, _ in mine.results()} == {f"m{i}_x2.png" for i in range(3)}


def test_each_in_its_own_tiles_and_few_openings(make_engine, upscale: Run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = make_engine("onnxruntime", smaller_px=8)
    choices = engines_from_paths([path], print)
    (tmp_path / "window").mkdir()
    sessions = Sessions(tmp_path / "window", first_settings(choices["identity"]))
    studio = Studio(choices, sessions, threads=1)
    try:
        mine = sessions.open()
        sizes = {"a.png": (120, 100), "b.png": (8, 8), "c.png": (90, 120), "d.png": (7, 8)}
        pictures = [brought(mine, saved(tmp_path / name, *size)) for name, size in sizes.items()]
        wait_for(lambda: studio.knows("identity"))
        assert "4 pictures to make: about" in summary_html(mine, studio)
        assert [picture.planned[2].tile_px for picture in pictures if picture.planned] == [16, 8, 16, 8]
        assert studio.opening_s([("identity", 16)]) == 0 < studio.opening_s([("identity", 16), ("identity", 8)])
        studio.start(mine)
        wait_for(lambda: not mine.is_busy)
        order = sorted(pictures, key=lambda picture: picture.started)
        assert [picture.name for picture in order] == ["a.png", "c.png", "b.png", "d.png"]
        for picture in pictures:
            expected = tmp_path / "out" / picture.name
            assert upscale(tmp_path / picture.name, "-o", expected, engine=path)[0] == 0
            assert picture.result is not None and picture.result.read_bytes() == expected.read_bytes()
    finally:
        studio.close()


def test_a_fault_of_ours_is_said_and_the_next_is_made(
    studio: Studio, sessions: Sessions, photo_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: studio.knows("identity"))
    mine = sessions.open()
    picture = brought(mine, photo_path)
    with monkeypatch.context() as patch:
        patch.setattr("intsr.runtime.app.studio.cheapest_tile", lambda *_: 1 / 0)
        studio.start(mine)
        wait_for(lambda: picture.status == "failed")
    assert picture.error == "photo.png: a fault in intsr (ZeroDivisionError: division by zero)"
    studio.start(mine)
    wait_for(lambda: picture.status == "done")


def test_what_is_no_picture_is_named(studio: Studio, sessions: Sessions, tmp_path: Path) -> None:
    mine = sessions.open()
    (tmp_path / "text.png").write_text("a letter")
    text = brought(mine, tmp_path / "text.png", "<b>text</b>.png")
    huge = brought(mine, write_huge_header(tmp_path / "huge.png"))
    assert text.unreadable.startswith("<b>text</b>.png: not a picture, whatever its name says")
    assert huge.unreadable.startswith("huge.png: more pixels than the limit; expected at most 178956970 pixels")
    shown = queue_html(mine, studio)
    assert "&lt;b&gt;text&lt;/b&gt;.png" in shown and "<b>" not in shown and str(mine.folder) not in shown
    studio.start(mine)
    assert not mine.is_busy and "2 failed" in summary_html(mine, studio)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../a.png",
        "a/../../b.png",
        "/etc/passwd",
        "a//b.png",
        "a\\b.png",
        "a\0.png",
        "a\n.png",
        "\ud800.png",
        "x" * 256,
    ],
)
def test_names_that_lead_elsewhere(sessions: Sessions, name: str) -> None:
    mine = sessions.open()
    with pytest.raises(UsageError, match="is no name that a picture may have here"):
        mine.add(name)
    assert list(mine.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "tour/day 1/ä.jpg", "frame_%06d.png", "-", "*.png", "…", *SYSTEMS_NAMES])
def test_names_that_people_give(name: str) -> None:
    check_name(name)


def test_names_of_results_are_one_of_a_kind(sessions: Sessions, photo_path: Path) -> None:
    mine = sessions.open()
    settings = session.Settings("identity", 2.5, "none", "png")
    for name in ("a.png", "A.JPG", "tour/a.png", "a.webp"):
        picture = brought(mine, photo_path, name)
        picture.status, picture.settings = "done", settings
    names = [name for name, _ in mine.results()]
    assert names == ["a_x2.5.png", "A_x2.5 (2).png", "tour/a_x2.5.png", "a_x2.5 (3).png"]


@pytest.mark.parametrize(
    ("name", "result"), [("frame_%06d.png", "frame_%06d_x2.png"), ("clip.mp4", "clip_x2.png"), ("a.b", "a_x2.png")]
)
def test_no_name_makes_a_film_of_it(
    studio: Studio, sessions: Sessions, photo_path: Path, name: str, result: str
) -> None:
    mine = sessions.open()
    picture = brought(mine, photo_path, name)
    studio.start(mine)
    wait_for(lambda: picture.status == "done")
    assert [name for name, _ in mine.results()] == [result]


def test_browsers_that_are_gone_are_forgotten(
    sessions: Sessions, photo_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, busy, here = (sessions.open() for _ in range(3))
    brought(gone, photo_path)
    brought(busy, photo_path).status = "queued"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + session.FORGOTTEN_AFTER_S + 1)
    sessions.find(here.token)
    sessions.forget()
    assert sessions.find(gone.token) is None and not gone.folder.exists()
    assert sessions.find(busy.token) is busy and sessions.find(here.token) is here


def test_they_are_forgotten_without_another_browser(
    studio: Studio, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sessions.open()
    monkeypatch.setattr(session, "FORGOTTEN_AFTER_S", 0.0)
    wait_for(lambda: not gone.folder.exists())
    assert sessions.find(gone.token) is None


def test_an_engine_that_goes_is_still_described(identity_engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "photos.engine"
    path.write_bytes(identity_engine.read_bytes())
    choice = engines_from_paths([path], print)["photos"]
    described = facts_html(choice)
    path.unlink()
    assert facts_html(choice) == described and "<dt>size</dt>" in described


def test_engines_of_folders(identity_engine: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photos.engine").write_bytes(identity_engine.read_bytes())
    write_video_engine(tmp_path / "one", "onnxruntime")
    (tmp_path / "two" / "broken.engine").write_text("nothing")
    (tmp_path / "two" / "photos.report.html").write_text("<p>")
    notes: list[str] = []
    found = engines_from_paths([tmp_path / "one", tmp_path / "two", tmp_path / "two" / "photos.engine"], notes.append)
    assert list(found) == [str(tmp_path / folder / "photos.engine") for folder in ("one", "two")]
    assert any("is for films" in note for note in notes) and any("broken.engine" in note for note in notes)
    assert [choice.report is not None for choice in found.values()] == [False, True]
    shown = facts_html(list(found.values())[1])
    assert "2 times" in shown and "Open its report" in shown
    with pytest.raises(UsageError, match="no engine that runs here"):
        engines_from_paths([tmp_path], notes.append)
    with pytest.raises(IntsrError, match=r"broken\.engine"):
        engines_from_paths([tmp_path / "two" / "broken.engine"], notes.append)


def test_an_engine_that_cannot_be_opened(sessions: Sessions, choices: dict[str, Choice], tmp_path: Path) -> None:
    path = tmp_path / "other.engine"
    path.write_bytes(choices["identity"].path.read_bytes()[:-200] + bytes(200))
    broken = {"identity": Choice("identity", path, choices["identity"].manifest, 1)}
    studio = Studio(broken, sessions)
    try:
        mine = sessions.open()
        wait_for(lambda: studio.problems)
        assert str(path) in summary_html(mine, studio)
    finally:
        studio.close()


def test_a_library_that_fails_is_said(
    sessions: Sessions, choices: dict[str, Choice], monkeypatch: pytest.MonkeyPatch, photo_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("intsr.runtime.app.studio.open_engine_with", lambda *_: 1 / 0)
        studio = Studio(choices, sessions)
        wait_for(lambda: studio.problems)
    try:
        mine = sessions.open()
        assert "ZeroDivisionError: division by zero" in summary_html(mine, studio)
        picture = brought(mine, photo_path)
        studio.start(mine)
        wait_for(lambda: picture.status == "done")
        assert not studio.problems
    finally:
        studio.close()


def test_the_demonstration_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    calls: list[list[str]] = []

    def run(command: list[str], stdout: int) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        Path(command[-1]).write_text("an engine")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    path = demonstration.demonstration_engine(said.append)
    assert calls[0][:-1] == [sys.executable, "-m", "intsr", "demo", "--engine-only", "-o"]
    assert "compiling the bundled demonstration model's" in said[0]
    assert demonstration.demonstration_engine(said.append) == path and len(calls) == 1 and path.is_file()


def test_no_demonstration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(BuildError, match="ended with exit code 1; compile one by hand"):
        demonstration.demonstration_engine(print)
    monkeypatch.setattr(demonstration, "find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match="torch is not installed"):
        demonstration.demonstration_engine(print)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_gradio(intsr: Run, identity_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intsr.runtime.commands.app.find_spec", lambda name: None)
    code, _, err = intsr("app", identity_engine)
    assert (code, err) == (
        2,
        'intsr: error: the window: gradio is not installed; install it with: pip install "intsr[app]"\n',
    )
