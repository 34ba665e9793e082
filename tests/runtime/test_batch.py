"""Which file becomes which, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.errors import UsageError
from intsr.runtime.batch import Job, Naming, check_outputs, plan_jobs, shard_from_text


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _names(jobs: list[Job], output: Path) -> list[str]:
    return [job.output.relative_to(output).as_posix() for job in jobs]


def test_one_file_to_one_file(tmp_path: Path) -> None:
    (job,) = plan_jobs([tmp_path / "a.jpg"], tmp_path / "b.png", False, Naming())
    assert job == Job(tmp_path / "a.jpg", tmp_path / "b.png")


def test_one_file_to_a_folder(tmp_path: Path) -> None:
    jobs = plan_jobs([tmp_path / "a.jpg"], tmp_path / "out", False, Naming("{stem}_x4{ext}"))
    assert _names(jobs, tmp_path / "out") == ["a_x4.jpg"]


def test_a_folder_whose_name_looks_like_a_picture(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    (job,) = plan_jobs([tmp_path / "a.jpg"], tmp_path / "out.png", False, Naming())
    assert job.output == tmp_path / "out.png" / "a.jpg"


def test_a_picture_that_cannot_be_written_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.GIF; expected a folder, or a name with \.png"):
        plan_jobs([tmp_path / "a.jpg"], tmp_path / "a.GIF", False, Naming())
    (job,) = plan_jobs([tmp_path / "a.jpg"], tmp_path / "v1.2", False, Naming())
    assert job.output == tmp_path / "v1.2" / "a.jpg"


def test_folders_are_mirrored(tmp_path: Path) -> None:
    _touch(
        tmp_path / "in/b.PNG", tmp_path / "in/sub/a.webp", tmp_path / "in/notes.txt", tmp_path / "in/.hidden/c.png"
    )
    output = tmp_path / "out"
    assert _names(plan_jobs([tmp_path / "in"], output, False, Naming()), output) == ["b.PNG"]
    assert _names(plan_jobs([tmp_path / "in"], output, True, Naming()), output) == ["b.PNG", "sub/a.webp"]
    in_png = plan_jobs([tmp_path / "in"], output, True, Naming(output_format="png"))
    assert _names(in_png, output) == ["b.png", "sub/a.png"]


def test_outputs_inside_the_input_folder_are_no_inputs(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png", tmp_path / "out/a.png")
    jobs = plan_jobs([tmp_path], tmp_path / "out", True, Naming())
    assert [job.source for job in jobs] == [tmp_path / "a.png"]


def test_collisions_are_problems_of_their_own(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.png", tmp_path / "in/a.jpg", tmp_path / "other/a.png", tmp_path / "in/b.png")
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out", False, Naming(output_format="png"))
    problems = {job.source.name: job.problem for job in jobs}
    assert set(problems) == {"a.png", "a.jpg", "b.png"} and not problems["b.png"]
    for name in ("a.png", "a.jpg"):
        assert "a.jpg and " in problems[name] and problems[name].endswith("a.png would both be written here")
    with pytest.raises(UsageError, match="would both be written here"):
        plan_jobs([tmp_path / "in/a.png", tmp_path / "other/a.png"], tmp_path / "out", False, Naming())


def test_what_is_named_twice_is_done_once(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png", tmp_path / "b.png")
    jobs = plan_jobs([tmp_path / "a.png", tmp_path, tmp_path / "*.png"], tmp_path / "out", False, Naming())
    assert _names(jobs, tmp_path / "out") == ["a.png", "b.png"] and not any(job.problem for job in jobs)


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (job,) = plan_jobs([tmp_path], tmp_path / "out", False, Naming())
    assert job.source == tmp_path / "a.png"


def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png")
    for output in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(UsageError, match="is itself an input"):
            plan_jobs([tmp_path / "a.png"], output, False, Naming())
    assert plan_jobs([tmp_path / "a.png"], tmp_path, False, Naming("{stem}_x4{ext}"))


def test_several_pictures_need_a_folder(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.png")
    for inputs in ([tmp_path / "a.png", tmp_path / "b.png"], [tmp_path / "in"]):
        with pytest.raises(UsageError, match="a folder for several pictures"):
            plan_jobs(inputs, tmp_path / "out.png", False, Naming())


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        plan_jobs([tmp_path], tmp_path / "out", True, Naming())


def test_existing_outputs(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / "a.png", tmp_path / "out" / name) for name in ("a.png", "b.png")]
    check_outputs(jobs, False, False)
    assert not (tmp_path / "out").exists()
    _touch(tmp_path / "out/a.png", tmp_path / "out/b.png")
    with pytest.raises(UsageError, match=r"already exists and 1 more.*--skip-existing or --overwrite"):
        check_outputs(jobs, False, False)
    check_outputs(jobs, True, False)
    check_outputs(jobs, False, True)


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    _touch(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot write here"):
        check_outputs([Job(tmp_path / "a.png", tmp_path / "file" / "a.png")], False, False)


def test_patterns_are_for_those_whose_shell_leaves_them(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.txt", tmp_path / "sub/deep/a.png")
    output = tmp_path / "out"
    assert _names(plan_jobs([tmp_path / "*.png"], output, False, Naming()), output) == ["a.png"]
    assert _names(plan_jobs([tmp_path / "?.*"], output, False, Naming()), output) == ["a.png", "b.jpg"]
    everywhere = plan_jobs([tmp_path / "**" / "*.png"], output, False, Naming())
    assert _names(everywhere, output) == ["a.png", "sub/deep/a.png"]
    with pytest.raises(UsageError, match="no pictures"):
        plan_jobs([tmp_path / "*.webp"], output, False, Naming())


def test_a_file_that_is_really_called_so_is_no_pattern(tmp_path: Path) -> None:
    _touch(tmp_path / "a[1].png", tmp_path / "a1.png")
    (job,) = plan_jobs([tmp_path / "a[1].png"], tmp_path / "b.png", False, Naming())
    assert job == Job(tmp_path / "a[1].png", tmp_path / "b.png")


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
    parts = [shard_from_text(f"{index}/{count}").part(everything) for index in range(1, count + 1)]
    assert sorted((job for part in parts for job in part), key=everything.index) == everything
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "-1/2", "a/b", "1/0", "1/2/3"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        shard_from_text(text)
