"""Which file becomes which, before anything is read."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intsr.errors import EXIT_SOME_FAILED, UsageError
from intsr.runtime.batch.jobs import Job, check_outputs, plan_jobs, shard_of
from intsr.runtime.batch.naming import Naming

Run = Callable[..., tuple[int, str, str]]
_PLAIN, _X4, _PNG = Naming(), Naming("{stem}_x4{ext}"), Naming(output_format="png")


def _forbid(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """As if they could not be listed: file modes are no bar to root, who runs tests too."""
    scandir: Callable[[Any], Any] = os.scandir

    def refuse(folder: Any) -> Any:
        if Path(folder) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _names(jobs: list[Job], output: Path) -> list[str]:
    return [job.output.relative_to(output).as_posix() for job in jobs]


def _problems(inputs: Path, output: Path, naming: Naming = _PLAIN, **options: Any) -> dict[str, str]:
    """By the names of sources, in their order."""
    return {job.source.name: job.problem for job in plan_jobs([inputs], output, naming=naming, **options)}


def _planned(folder: Path, inputs: str, output: str, **options: Any) -> list[str]:
    """`a.png > out/a.png` a job, or `a.png: problem`, or the error of all, without the folder."""

    def short(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    try:
        jobs = plan_jobs([folder / item for item in inputs.split()], folder / output, **options)
    except UsageError as error:
        return [str(error).replace(f"{folder}/", "").replace(str(folder), ".")]
    return [
        f"{short(job.source)}: {job.problem}" if job.problem else f"{short(job.source)} > {short(job.output)}"
        for job in jobs
    ]


# What it shows | files that are there | inputs | -o | -r, and how outputs are called | what becomes which.
PLANS = r"""
one file to one file      |                        | a.jpg            | b.png |        | a.jpg > b.png
one file to a folder      |                        | a.jpg            | out   | x4     | a.jpg > out/a_x4.jpg
a folder like a picture   | o.png/x                | a.jpg            | o.png |        | a.jpg > o.png/a.jpg
a folder with a dot       |                        | a.jpg            | v1.2  |        | a.jpg > v1.2/a.jpg
a folder                  | in/b.PNG in/s/a.png    | in               | out   |        | in/b.PNG > out/b.PNG
its tree, not hidden ones | in/s/a.jpg in/.h/c.png | in               | out   | -r png | in/s/a.jpg > out/s/a.png
outputs inside inputs     | a.png out/a.png        | .                | out   | -r     | a.png > out/a.png
outputs in a pattern      | s/b.png out/s/b.png    | **/*.png         | out   |        | s/b.png > out/s/b.png
a pattern in outputs      | a.png out/a.png        | out/*.png        | out   | x4     | out/a.png > out/a_x4.png
inputs inside outputs     | raw/a.png              | raw              | .     | -r     | raw/a.png > a.png
outputs around a pattern  | raw/a.png              | raw/*.png        | .     |        | raw/a.png > a.png
named, so an input        | a.png a_x4.png         | a.png a_x4.png   | .     | x4     | a.png: is itself an input
like an output elsewhere  | in/a_x4.png            | in               | out   | x4     | in/a_x4.png > out/a_x4_x4.png
what is named twice       | in/a.png               | in/a.png in in/* | out   |        | in/a.png > out/a.png
an input as output        | a.png                  | a.png            | .     |        | a.png: is itself an input
as a file                 | a.png                  | a.png            | a.png |        | a.png: is itself an input
several need a folder     | a.png                  | a.png b.png      | o.png |        | -o: o.png is a file
as a folder does          | in/a.png               | in               | o.png |        | -o: o.png is a file
an empty folder           | in/notes.txt           | in               | out   | -r     | in: no pictures
what is not written       |                        | a.jpg            | a.GIF |        | -o: a.GIF; expected a folder
a mistyped suffix         | a.jpg                  | a.jpg            | b.pgn |        | -o: b.pgn; expected a name
a pattern                 | b.jpg c.txt            | ?.*              | out   |        | b.jpg > out/b.jpg
a pattern of any depth    | s/t/a.png              | **/*.png         | out   |        | s/t/a.png > out/s/t/a.png
a pattern without matches | a.png                  | *.webp           | out   |        | *.webp: no pictures
a name like a pattern     | a[1].png a1.png        | a[1].png         | b.png |        | a[1].png > b.png
a slash is a folder       |                        | a.jpg            | b.png/ |       | a.jpg > b.png/a.jpg
of any name               |                        | a.jpg            | b.pgn/ |       | a.jpg > b.pgn/a.jpg
a name that is none       | in/b\c.png             | in               | out   |        | in/b\c.png: is not made
"""


@pytest.mark.parametrize("case", PLANS.strip().splitlines(), ids=lambda case: case.split("|")[0].strip())
def test_which_file_becomes_which(tmp_path: Path, case: str) -> None:
    # Of the first job; errors and problems by their beginnings.
    _, files, inputs, output, how, expected = (part.strip() for part in case.split("|"))
    _touch(*(tmp_path / file for file in files.split()))
    naming = next((found for name, found in (("x4", _X4), ("png", _PNG)) if name in how), _PLAIN)
    options = {"naming": naming, "recursive": "-r" in how, "must_be_folder": output.endswith("/")}
    assert _planned(tmp_path, inputs, output, **options)[0].startswith(expected)


def test_collisions_are_problems_of_their_own(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.png", tmp_path / "in/a.jpg", tmp_path / "in/b.png")
    problems = _problems(tmp_path / "in", tmp_path / "out", _PNG)
    assert set(problems) == {"a.png", "a.jpg", "b.png"} and not problems["b.png"]
    for name in ("a.png", "a.jpg"):
        assert "a.jpg and " in problems[name] and problems[name].endswith("a.png would both be written here")


@pytest.mark.parametrize("item", ["", "*.png", "**/*.png"])
def test_outputs_beside_inputs_are_no_inputs_of_the_next_call(tmp_path: Path, item: str) -> None:
    def plan() -> list[Job]:
        return plan_jobs([tmp_path / item], tmp_path, recursive=True, naming=_X4)

    _touch(tmp_path / "a.png", tmp_path / "b.png")
    first = plan()
    assert _names(first, tmp_path) == ["a_x4.png", "b_x4.png"] and not any(job.problem for job in first)
    _touch(first[0].output)
    # Shards count on the same jobs whatever others have written meanwhile.
    assert plan() == first
    _touch(first[1].output, tmp_path / "a_x4_x4.png")
    assert plan() == first


def test_an_original_is_never_taken_for_an_earlier_output_by_its_name_alone(tmp_path: Path) -> None:
    _touch(tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.jpg")
    notes = list[str]()
    for item in (tmp_path, tmp_path / "*"):
        problems = _problems(item, tmp_path, _PNG, note=notes.append)
        assert problems == {"a.jpg": "is itself an input", "a.png": "is itself an input", "b.jpg": ""}
    assert notes == []
    assert [*_problems(tmp_path, tmp_path, _PNG, resuming=True, note=notes.append)] == ["a.jpg", "b.jpg"]
    assert notes == [f"{tmp_path / 'a.png'}: an earlier call's output for another input, so no input"]


def test_overwriting_destroys_no_original_of_the_batch(upscale: Run, photo: np.ndarray, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg"):
        Image.fromarray(photo).save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    code, _, err = upscale(tmp_path, "-o", tmp_path, "--format", "png", "--overwrite")
    assert (code, (tmp_path / "a.png").read_bytes()) == (EXIT_SOME_FAILED, before)
    assert "a.png is itself an input" in err and "1 ok, 2 failed" in err


def test_inputs_that_give_nothing_are_named(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png", tmp_path / "in/b.png", tmp_path / "in/IMG_1.heic", tmp_path / "in/c.GIF")
    _touch(tmp_path / "in/notes.txt", tmp_path / "in/sub/d.psd", tmp_path / "in/.hidden.gif")
    (tmp_path / "empty").mkdir()
    notes = list[str]()
    inputs = [tmp_path / "a.png", tmp_path / "nothing/*.png", tmp_path / "empty", tmp_path / "in"]
    assert len(plan_jobs(inputs, tmp_path / "out", naming=_PLAIN, note=notes.append)) == 2
    assert notes == [
        f"{tmp_path / 'nothing/*.png'}: no pictures",
        f"{tmp_path / 'empty'}: no pictures",
        f"{tmp_path / 'in'}: 2 files skipped, as .gif, .heic are not read",
    ]
    (tmp_path / "in/b.png").unlink()
    with pytest.raises(UsageError, match=r"no pictures \(.*2 files skipped, as \.gif, \.heic are not read\)"):
        plan_jobs([tmp_path / "in"], tmp_path / "out", naming=_PLAIN)


def test_outputs_that_are_there(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.png", tmp_path / "in/b.png", tmp_path / "in/c.png", tmp_path / "file")
    output = tmp_path / "out"
    jobs = plan_jobs([tmp_path / "in"], output, naming=_PLAIN)
    check_outputs(jobs, False, False)
    assert not output.exists()
    (output / "a.png").mkdir(parents=True)
    (output / "b.png").symlink_to(output / "gone.png")
    for resuming, dangling in ((False, ""), (True, "is a link that leads nowhere: remove it")):
        assert [*_problems(tmp_path / "in", output, resuming=resuming).values()] == ["is a folder", dangling, ""]
    check_outputs(jobs, True, False)
    check_outputs(jobs, False, True)
    for some, words in ((jobs, "a.png: already exists and 1 more"), (jobs[1:], r"b\.png: already exists")):
        with pytest.raises(UsageError, match=f"{words}; give --skip-existing or --overwrite"):
            check_outputs(some, False, False)
    with pytest.raises(UsageError, match="cannot write here"):
        check_outputs([Job(tmp_path / "a.png", tmp_path / "file" / "a.png")], False, False)


@pytest.mark.parametrize("item", ["in", "in/**/*.png"])
def test_a_folder_that_cannot_be_read_is_a_job_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: str
) -> None:
    _touch(tmp_path / "in/a.png", tmp_path / "in/m/b.png", tmp_path / "in/z/c.png")
    _forbid(monkeypatch, tmp_path / "in/m")
    jobs = plan_jobs([tmp_path / item], tmp_path / "out", naming=_PLAIN, recursive=True)
    assert _names(jobs, tmp_path / "out") == ["a.png", "m", "z/c.png"]
    problem = "is not made: the folder cannot be read (Permission denied)"
    assert [job.problem for job in jobs] == ["", problem, ""]
    check_outputs(jobs, False, False)
    _forbid(monkeypatch, tmp_path / "in")
    assert _problems(tmp_path / item, tmp_path / "out", recursive=True) == {"in": problem}


def test_subfolders_that_are_not_asked_for_may_be_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path / "a.png", tmp_path / "sub/b.png", tmp_path / ".hidden/c.png", tmp_path / "out/d.png")
    _forbid(monkeypatch, tmp_path / "sub", tmp_path / ".hidden", tmp_path / "out")
    assert _problems(tmp_path, tmp_path / "out") == {"a.png": ""}
    assert len(_problems(tmp_path, tmp_path / "out", recursive=True)) == 2


def test_links_to_nothing_are_left_to_their_reader(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "l.png").symlink_to("l.png")
    for item in (tmp_path, tmp_path / "*.png"):
        problems = _problems(item, tmp_path / "out", recursive=True)
        assert problems == {"a.png": "", "gone.png": "", "l.png": ""}
    with pytest.raises(UsageError, match="no pictures"):
        plan_jobs([tmp_path / "l.png" / "*.png"], tmp_path / "out", naming=_PLAIN, recursive=True)


def test_a_name_that_gets_too_long_is_a_problem_of_its_own(tmp_path: Path) -> None:
    long, longer = "n" * 248 + ".png", Naming("{stem}_times4{ext}")
    _touch(tmp_path / "in/a.png", tmp_path / "in" / long)
    assert _problems(tmp_path / "in", tmp_path / "out", _X4) == {"a.png": "", long: ""}
    problems = _problems(tmp_path / "in", tmp_path / "out", longer)
    assert problems == {"a.png": "", long: "cannot be written (File name too long)"}
    with pytest.raises(UsageError, match=r"cannot be written \(File name too long\); choose another"):
        plan_jobs([tmp_path / "in" / long], tmp_path / "out", naming=longer)


def test_a_path_that_no_system_takes_stops_nothing_else(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png")
    long = tmp_path / ("n" * 300 + ".png")
    jobs = plan_jobs([long, tmp_path / "a.png"], tmp_path / "out", naming=_PLAIN)
    assert [(job.source, bool(job.problem)) for job in jobs] == [(long, True), (tmp_path / "a.png", False)]
    assert plan_jobs([long], tmp_path / "b.png", naming=_PLAIN) == [Job(long, tmp_path / "b.png")]
    with pytest.raises(UsageError, match=r"^-o: .*File name too long"):
        plan_jobs([tmp_path / "a.png"], long, naming=_PLAIN)
    with pytest.raises(UsageError, match="no pictures"):
        plan_jobs([tmp_path / ("*" * 300 + ".webp")], tmp_path / "out", naming=_PLAIN)


def test_patterns_follow_no_links_in_circles(tmp_path: Path) -> None:
    _touch(tmp_path / "p/a.png", tmp_path / "p/sub/b.png")
    for link in ("p/loop", "p/loop2", "p/sub/up"):
        (tmp_path / link).symlink_to(tmp_path / "p")
    for pattern, expected in (
        *((deep, ["a.png", "sub/b.png"]) for deep in ("**/*.png", "**/**/*.png", "**", "**/[ab].png")),
        # A picture that is reached through links too is done once.
        ("*/**/*.png", ["loop/a.png", "sub/b.png"]),
        ("*/b.png", ["sub/b.png"]),
    ):
        jobs = plan_jobs([tmp_path / "p" / pattern], tmp_path / "out", naming=_PLAIN)
        assert _names(jobs, tmp_path / "out") == expected


_PARTS = st.sampled_from(["**", "*", "?", "[as]*", ".*", "a.png", "s"])


@given(pattern=st.lists(_PARTS, min_size=1, max_size=4).filter(lambda parts: not {*parts} <= {"a.png", "s"}))
def test_patterns_match_what_shells_match(tmp_path_factory: pytest.TempPathFactory, pattern: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp() / "shell"
    names = ("a.png", "b.png", ".h.png", "s/a.png", "s/t/a.png", ".k/a.png", "s/.k/b.png")
    _touch(*(folder / name for name in names))
    item = folder.joinpath(*pattern)
    # To Python, not to shells, `a.png/**` is a.png.
    found = {Path(name) for name in glob.glob(str(item), recursive=True) if not name.endswith("/")}  # noqa: PTH207
    expected = sorted(path for path in found if path.is_file())
    try:
        made = sorted(job.source for job in plan_jobs([item], folder / "out", naming=_PLAIN))
    except UsageError as error:
        assert "no pictures" in str(error)
        made = []
    assert made == expected


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{stem}_x{scale}{ext}", "photo_x4.jpg"),
        ("{engine}-{stem}.png", "demo-photo.png"),
        ("{{{stem}}}{ext}", "{photo}.jpg"),
    ],
)
def test_names_follow_a_template(template: str, name: str) -> None:
    assert Naming(template, scale=4.0, engine="demo").name(Path("photo.jpg")) == name
    assert Naming("{stem}{scale}{ext}", scale=2.5).name(Path("a.png")) == "a2.5.png"


@pytest.mark.parametrize(
    "template",
    ["", "{ext}", "{stem}", "{stem}.gif", "{size}{ext}", "{stem", "{}{ext}", "../{stem}{ext}", "{stem!r}{ext}",
     "a/{stem}{ext}", "{stem.__class__}{ext}", "{stem:>9}{ext}", "{0}{ext}", "a\0{ext}"],
)  # fmt: skip
def test_templates_that_are_no_name(template: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        Naming(template)


@given(count=st.integers(1, 9), jobs=st.integers(0, 40))
def test_shards_are_a_partition(count: int, jobs: int) -> None:
    everything = [Job(Path(f"{index}.png"), Path(f"out/{index}.png")) for index in range(jobs)]
    parts = [shard_of(everything, f"{index}/{count}") for index in range(1, count + 1)]
    assert sorted((job for part in parts for job in part), key=everything.index) == everything
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "-1/2", "a/b", "1/0", "1/2/3", "\u0661/\u0662"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        shard_of([], text)


def test_shards_share_a_folder_that_is_its_own_output(upscale: Run, photo: np.ndarray, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(photo).save(tmp_path / name)
    call = (tmp_path, "-r", "-o", tmp_path, "--suffix", "_x4")
    for index in (1, 2):
        assert upscale(*call, "--shard", f"{index}/2")[0] == 0
    pictures = ["a.png", "a_x4.png", "b.png", "b_x4.png", "c.png", "c_x4.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == pictures
    code, _, err = upscale(*call, "--skip-existing")
    assert (code, "3 skipped" in err) == (0, True)
    code, out, err = upscale(*call, "--shard", "5/5", "--json")
    assert (code, out, err.splitlines()[-1]) == (0, "", "shard 5/5: nothing to do")


@pytest.mark.parametrize("options", [(), ("--skip-existing",)])
def test_bad_names_do_not_stop_the_others(
    upscale: Run, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    folder = tmp_path / "in"
    _touch(folder / "sub/b.png", folder / ("n" * 250 + ".png"))
    (folder / "l.png").symlink_to("l.png")
    Image.fromarray(photo).save(folder / "a.png")
    _forbid(monkeypatch, folder / "sub")
    code, _, err = upscale(folder, "-r", "-o", tmp_path / "out", "--suffix", "_x4", *options)
    assert (code, [path.name for path in (tmp_path / "out").iterdir()]) == (EXIT_SOME_FAILED, ["a_x4.png"])
    assert "1 ok, 3 failed" in err and "the folder cannot be read (Permission denied)" in err
    assert "File name too long" in err and f"{folder / 'l.png'}: no such file" in err


def test_a_named_file_that_cannot_be_read_does_not_stop_the_others(
    upscale: Run, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.png"
    secret.touch()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: Path(path) != secret and access(path, mode, **more))
    code, _, err = upscale(secret, photo_path, "-o", tmp_path / "out")
    assert (code, "1 ok, 1 failed" in err) == (EXIT_SOME_FAILED, True)
