"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intsr.errors import UsageError

HASH_CHUNK_BYTES = 1 << 22


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable_folder(folder: Path) -> None:
    """Create `folder` if needed. Raises UsageError where that or writing into it is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # os.access() answers by permission bits alone; a real file also finds read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(folder, f"cannot write here ({error.strerror})", fix="choose another output folder") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file name in the folder of `path`; on success it is synced and renamed to `path`.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is as it was.
    """
    check_writable_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _fsync_path(temporary)
        temporary.replace(path)
        _fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`.

    Raises UsageError if `path` exists and is not a folder that may be replaced.
    """
    if path.exists() and not (overwrite and path.is_dir()):
        raise UsageError(path, "already exists", fix="remove it or choose another output")
    check_writable_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            # Two renames, so that a kill in between leaves the old folder whole under another name.
            retired = temporary.with_suffix(".old")
            path.replace(retired)
            temporary.replace(path)
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_from_path(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
