"""An engine is the same everywhere by its digest, wherever it lies."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from intsr.bundle import MANIFEST_NAME
from intsr.files import atomic_path
from intsr.user_cache import user_cache


def engine_digest(path: Path) -> str:
    """Hex SHA-256 of an engine's manifest, which has that of every member. Raises OSError, BadZipFile, KeyError."""
    with zipfile.ZipFile(path) as archive:
        return hashlib.sha256(archive.read(MANIFEST_NAME)).hexdigest()


def kept_engine(digest: str) -> Path:
    """Where an engine that was sent is kept, there or not. Raises OSError where the user has no home."""
    return user_cache("engines") / f"{digest}.engine"


def found_engine(path: Path, digest: str) -> Path | None:
    """Return where the engine of that digest is: at its path, or kept since it was sent; None where it is not."""
    for place in (path, kept_engine(digest)):
        try:
            if engine_digest(place) == digest:
                return place
        except (OSError, KeyError, zipfile.BadZipFile):
            continue
    return None


def keep_engine(content: bytes, digest: str) -> Path:
    """Write an engine that was sent. Raises UsageError, OSError."""
    path = kept_engine(digest)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def code_digest() -> str:
    """Hex SHA-256 of the code that workers run: two nodes with the same one make the same pictures."""
    import intsr
    import intsr.runtime

    folders = (Path(intsr.__file__).parent, Path(intsr.runtime.__file__).parent)
    digest = hashlib.sha256()
    for folder, pattern in zip(folders, ("*.py", "**/*.py"), strict=True):
        for path in sorted(folder.glob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
