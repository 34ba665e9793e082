"""A file or folder appears whole or not at all, and what was there before stays until then."""

import errno
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from intsr import files
from intsr.errors import OutputExistsError, UsageError
from intsr.files import (
    atomic_folder,
    atomic_path,
    check_free_space,
    check_output_file,
    check_replaceable_folder,
    remove_stale_parts,
)


def _tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, with a file's content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_appears_on_success_only_and_in_new_folders(tmp_path, old):
    path = tmp_path / "new" / "deep" / "a.bin"
    if old is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(old)
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == path.parent
        assert (path.read_bytes() if path.exists() else None) == old
    assert _tree(path.parent) == {"a.bin": b"new"}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "a drive without them"])
@pytest.mark.parametrize("appears", [True, False])
def test_without_overwrite_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch, links, appears):
    if not links:

        def no_links(*_):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(files.os, "link", no_links)
    path, problem = tmp_path / "a.bin", "a.bin: already exists; give --skip-existing or --overwrite"
    expected = pytest.raises(OutputExistsError, match=problem) if appears else nullcontext()
    with expected, atomic_path(path, overwrite=False) as temporary:
        temporary.write_bytes(b"new")
        if appears:
            path.write_bytes(b"somebody else's")
    assert _tree(tmp_path) == {"a.bin": b"somebody else's" if appears else b"new"}


def _old_folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"old")
    return tmp_path / "out"


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_failure_leaves_what_was_there_and_nothing_else(tmp_path, writer):
    path = _old_folder(tmp_path)
    before = _tree(tmp_path)
    with pytest.raises(KeyboardInterrupt), writer(path if writer is atomic_folder else path / "old") as temporary:
        (temporary / "new" if temporary.is_dir() else temporary).write_bytes(b"half")
        raise KeyboardInterrupt
    assert _tree(tmp_path) == before


def test_a_temporary_file_that_is_gone_is_an_error_not_an_empty_result(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.bin") as temporary:
        temporary.unlink()
    assert _tree(tmp_path) == {}


def test_permissions_follow_the_umask_not_mkstemp(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127])
def test_names_may_be_as_long_as_the_file_system_permits(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary, atomic_folder(tmp_path / f"{name[:-1]}f"):
        temporary.write_bytes(b"x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_below_a_file_is_one_line(tmp_path, writer):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "deeper" / "a"):
        with pytest.raises(UsageError, match="cannot write here") as caught, writer(path):
            pytest.fail("the body ran")
        assert "\n" not in str(caught.value)
    assert _tree(tmp_path) == {"file": b""}


def test_an_output_is_checked_without_creating_anything(tmp_path):
    check_output_file(tmp_path / "a" / "b" / "c.engine")
    assert _tree(tmp_path) == {}
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path, "is a folder; expected a file name"),
        (tmp_path / "file" / "a" / "b.engine", "cannot write here"),
        (tmp_path / ("n" * 256) / "a" / "b.engine", "cannot write here"),
        (Path("/proc/out.png"), r"^/proc: cannot write here \(no new files can be made in this folder\); "),
    ):
        with pytest.raises(UsageError, match=message):
            check_output_file(path)
    assert _tree(tmp_path) == {"file": b""}


def test_a_folder_appears_or_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "out"
    for before, name in ((None, "a"), ({"a": b"whole"}, "b")):
        with atomic_folder(path) as temporary:
            (temporary / name).write_bytes(b"whole")
            assert (_tree(path) if path.exists() else None) == before
        assert _tree(tmp_path / "new") == {"out": None, f"out/{name}": b"whole"}


def test_failure_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = _old_folder(tmp_path)
    before, replace = _tree(tmp_path), Path.replace

    def interrupted(self, target):
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(path):
        pass
    assert _tree(tmp_path) == before


def test_folder_is_kept_without_overwrite_and_a_file_always(tmp_path):
    path = _old_folder(tmp_path)
    with pytest.raises(UsageError, match="already exists"), atomic_folder(path, overwrite=False):
        pytest.fail("the body ran")
    with pytest.raises(UsageError, match="already exists"), atomic_folder(path / "old"):
        pytest.fail("the body ran")


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path):
    path = _old_folder(tmp_path)
    with pytest.raises(UsageError, match=r"already holds something else; expected .* manifest"):
        check_replaceable_folder(path, marker="manifest")
    (path / "manifest").touch()
    with atomic_folder(path, marker="manifest") as temporary:
        (temporary / "manifest").touch()
    assert _tree(path) == {"manifest": b""}
    (tmp_path / "empty").mkdir()
    check_replaceable_folder(tmp_path / "empty", marker="manifest")
    check_replaceable_folder(tmp_path / "nothing", marker="manifest")
    (path / "pictures").mkdir()
    with pytest.raises(UsageError, match="already holds the folder pictures"):
        check_replaceable_folder(path, marker="manifest")


def test_a_folder_that_one_is_or_lives_in_is_never_replaced(tmp_path, monkeypatch):
    for folder in ("here", "home/me"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    monkeypatch.chdir(tmp_path / "here")
    for output in (Path(), Path(".."), Path("../here"), tmp_path / "home", tmp_path / "home" / "me"):
        with pytest.raises(UsageError, match="would replace the folder you are in"), atomic_folder(output):
            pytest.fail("the body ran")
    with atomic_folder(tmp_path / "home" / "me" / "out"):
        pass
    assert (tmp_path / "home" / "me" / "out").is_dir()


def test_a_link_stays_and_its_folder_is_replaced(tmp_path):
    path = _old_folder(tmp_path)
    (tmp_path / "link").symlink_to(path)
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "new").write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert _tree(path) == {"new": b"new"}


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {tmp_path: SimpleNamespace(free=3_000_000_000)}
    monkeypatch.setattr("shutil.disk_usage", free.__getitem__)
    check_free_space(tmp_path / "not" / "there", 3_000_000_000)
    assert not (tmp_path / "not").exists()
    with pytest.raises(UsageError, match=r"there: 3\.00 GB free on its disk; expected about 3\.01 GB"):
        check_free_space(tmp_path / "not" / "there", 3_010_000_000)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target, other = tmp_path / "sr.png", tmp_path / "other.png"
    code = f"""
import os, pathlib
from intsr.files import atomic_path
contexts = [atomic_path(pathlib.Path(name)) for name in ({str(target)!r}, {str(other)!r})]
for context in contexts:
    context.__enter__().write_bytes(b"half")
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    mine, left = tmp_path / ".sr.png.notes.part", set(tmp_path.iterdir())
    mine.write_text("of somebody else: not what mkstemp makes")
    assert len(left) == 2
    with atomic_path(target) as writing:
        (removed,) = remove_stale_parts([target])
        # Not what is being written.
        writing.write_bytes(b"whole")
    assert removed in left and removed.name.startswith(".sr.png.")
    assert set(tmp_path.iterdir()) == (left - {removed}) | {target, mine}
    assert remove_stale_parts([tmp_path / "no" / "folder.png"]) == []


def test_a_file_taken_for_a_stale_one_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, lock = tmp_path / "sr.png", files.try_lock
    removed: list[Path] = []

    def late(descriptor: int) -> bool:
        # Another process comes between the making and the locking, once.
        if not removed:
            removed.extend(part for part in tmp_path.iterdir())
            removed[0].unlink()
        return lock(descriptor)

    monkeypatch.setattr(files, "try_lock", late)
    with atomic_path(target) as temporary:
        assert temporary not in removed
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole" and len(removed) == 1
    assert list(tmp_path.iterdir()) == [target]
