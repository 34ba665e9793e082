"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from intsr.errors import OutputExistsError, UsageError

HASH_CHUNK_BYTES = 1 << 22
_PREFIX_CHARACTERS = 40
_PART = ".part"
# What tempfile.mkstemp puts between prefix and suffix.
_RANDOM_CHARACTERS = 8


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> UsageError:
    reason = error.strerror
    if error.errno == errno.ENOENT and path.is_dir():
        # /proc and the like: what is missing is the new file.
        reason = "no new files can be made in this folder"
    return UsageError(path, f"cannot write here ({reason})", fix="choose another output")


def check_writable_folder(folder: Path) -> None:
    """Create `folder` if needed. Raises UsageError where that or writing into it is impossible."""
    _check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # os.access() answers by permission bits alone; a real file also finds read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _nearest(folder: Path) -> Path:
    """The folder, or what is there of those above it."""
    try:
        return next((place for place in (folder, *folder.parents) if place.exists()), folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def check_writable_place(folder: Path) -> None:
    """Check as `check_writable_folder` and create nothing: the nearest folder that is there must be writable."""
    check_writable_folder(_nearest(folder))


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise UsageError where the disk below `folder`, which need not exist yet, has no room for `needed_bytes`."""
    free_bytes = shutil.disk_usage(_nearest(folder)).free
    if free_bytes < needed_bytes:
        got = f"{free_bytes / 1e9:.2f} GB free on its disk"
        raise UsageError(folder, got, f"about {needed_bytes / 1e9:.2f} GB", "free some, or choose another output")


def check_output_file(path: Path) -> None:
    """Find before long work what `atomic_path` would find after it. Creates nothing. Raises UsageError."""
    _check_no_folder(path)
    check_writable_place(path.parent)


def _check_name(path: Path) -> None:
    if str(path) == "-":
        # Who writes it means a pipe; where that is possible, it does not come here.
        fix = "intsr upscale alone writes to a pipe: choose a name"
        raise UsageError(path, "is no name for a file or folder", "any other one", fix)


def _check_no_folder(path: Path) -> None:
    _check_name(path)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise _unwritable(path, error) from error
    if is_folder:
        raise UsageError(path, "is a folder", "a file name", "choose another output")


@contextmanager
def atomic_path(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary file name in the folder of `path`; on success it is synced and renamed to `path`.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is as it was. Raises UsageError
    where `path` is a folder or cannot be written; without `overwrite` OutputExistsError where it is there by then.
    What a killed process leaves, `remove_stale_parts` finds.
    """
    _check_no_folder(path)
    check_writable_folder(path.parent)
    descriptor, temporary = _locked_temporary(path)
    try:
        yield temporary
        temporary.chmod(file_mode())
        _fsync_path(temporary)
        if overwrite:
            temporary.replace(path)
        else:
            _rename_to_new(temporary, path)
        _fsync_path(path.parent)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Renaming replaces what is there; a second name for the same file does not. Raises OutputExistsError."""
    try:
        os.link(temporary, path)
    except OSError as error:
        # Some drives know no second names (FAT, network shares): only a look is left, a moment before.
        if isinstance(error, FileExistsError) or os.path.lexists(path):
            raise OutputExistsError(path, "already exists", fix="give --skip-existing or --overwrite") from error
        temporary.replace(path)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """A new file, locked until its descriptor is closed: that tells it from one whose writer was killed."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_temporary_prefix(path), suffix=_PART, dir=path.parent)
        try_lock(descriptor)
        try:
            if Path(name).stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor, Path(name)
        except FileNotFoundError:
            pass
        # Before it was locked, another process took it for a stale one.
        os.close(descriptor)


def remove_stale_parts(paths: Iterable[Path]) -> list[Path]:
    """Remove what killed processes left of `atomic_path` for these paths; files that are being written stay."""
    wanted: dict[Path, set[str]] = {}
    for path in paths:
        wanted.setdefault(path.parent, set()).add(_temporary_prefix(path))
    removed = []
    for folder, prefixes in wanted.items():
        parts = folder.glob(f".*{_PART}") if folder.is_dir() else ()
        for part in parts:
            prefix = part.name[: -len(_PART) - _RANDOM_CHARACTERS]
            if prefix in prefixes and part.is_file() and not part.is_symlink() and _is_stale(part):
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
                    removed.append(part)
    return removed


def _is_stale(part: Path) -> bool:
    try:
        descriptor = os.open(part, os.O_RDWR)
    except OSError:
        return False
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock a file or folder for as long as the descriptor is open; False where another process has it.

    Also False where the system knows no such locks.
    """
    # Takes a twentieth of a second to import.
    from filelock import lock_descriptor

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False


@contextmanager
def atomic_folder(path: Path, overwrite: bool = True, marker: str = "", inner: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, whose content is deleted.

    marker: a file that every folder of this kind has. inner: the folders that it may have. On any exception `path` is
    as it was. Raises UsageError as `check_replaceable_folder` does.
    """
    _check_name(path)
    # A link stays, the folder it leads to is replaced; `.` gets a name.
    path = path.resolve()
    check_replaceable_folder(path, overwrite, marker, inner)
    check_writable_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_temporary_prefix(path), suffix=_PART, dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            # Two renames, so that a kill in between leaves the old folder whole under another name.
            retired = temporary.with_suffix(".old")
            path.replace(retired)
            try:
                temporary.replace(path)
            except BaseException:
                retired.replace(path)
                raise
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable_folder(path: Path, overwrite: bool = True, marker: str = "", inner: Iterable[str] = ()) -> None:
    """Raise UsageError where `path` exists and must not be replaced by a new folder of that name.

    That is: a file; a folder, unless `overwrite`; with a `marker`, a folder that holds other things but no such
    file, or other folders beside it than those of `inner`; and always a folder that the user works in or
    below, or lives in.
    """
    _check_name(path)
    fix = "remove it or choose another output"
    if not path.exists():
        return
    if not (overwrite and path.is_dir()):
        raise UsageError(path, "already exists", fix=fix)
    if any(place.resolve().is_relative_to(path.resolve()) for place in (Path.cwd(), Path.home())):
        raise UsageError(path, "would replace the folder you are in", "a folder of its own", "choose another output")
    if marker and not (path / marker).exists() and any(path.iterdir()):
        raise UsageError(path, "already holds something else", f"a new folder, or one with {marker}", fix)
    others = sorted({item.name for item in path.iterdir() if item.is_dir()} - set(inner)) if marker else []
    if others:
        raise UsageError(path, f"already holds the folder {others[0]}", f"nothing beside {marker} but files", fix)


def _temporary_prefix(path: Path) -> str:
    # Cut short: with what mkstemp adds, a name of the permitted 255 bytes would be too long.
    return f".{path.name[:_PREFIX_CHARACTERS]}."


def file_mode() -> int:
    """Permissions of an ordinary new file."""
    return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_from_path(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
