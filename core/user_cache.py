"""Files in the user's cache: what takes long to make, and can be made again.

Each begins with the SHA-256 of the rest; what does not agree with that is damaged and never used. Nothing here is
needed: the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from intsr.errors import IntsrError
from intsr.files import atomic_path

_DIGEST_BYTES = 32


def user_cache(name: str) -> Path:
    """Return the folder of that name, which may not be there. Raises OSError where the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "intsr" / name
    except RuntimeError as error:
        raise OSError(f"{error}; set XDG_CACHE_HOME") from error


class KeptFile:
    """One file. what: is kept in it, in the plural, for the warnings that say why it is not used or not written."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what, self._digest = path, what, b""

    def read(self) -> bytes:
        """Return its content; empty where there is none, or, with a RuntimeWarning, none that is whole."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.warn(f"it cannot be read ({error.strerror})")
            return b""
        self._digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != self._digest:
            self.warn("its content is damaged")
            self._digest, content = b"", b""
        return content

    def write(self, content: bytes) -> None:
        """Write it in one piece, unless it is empty or what was read; a RuntimeWarning where it cannot be written."""
        digest = hashlib.sha256(content).digest()
        if not content or digest == self._digest:
            return
        try:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(digest + content)
        except (IntsrError, OSError) as error:
            # Of the folder: one warning for all that cannot be kept there.
            warn_of_cache(self._what, f"{self.path.parent} cannot be written ({error})")

    def warn(self, reason: str) -> None:
        """Slower, not wrong: no reason to stop, and one to say so."""
        warn_of_cache(self._what, f"{self.path}: {reason}")


def warn_of_cache(what: str, reason: str) -> None:
    """Give the RuntimeWarning of `KeptFile`."""
    text = f"{what} of an earlier start cannot be used or kept, which costs time: {reason}"
    warnings.warn(text, RuntimeWarning, stacklevel=5)
