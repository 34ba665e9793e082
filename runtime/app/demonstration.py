"""The demonstration model's engine, kept in the user's cache: compiled when it is first asked for."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import intsr
from intsr.errors import BuildError, MissingLibraryError
from intsr.files import atomic_path, sha256_from_path
from intsr.user_cache import user_cache

_MODEL = Path(intsr.__path__[0]) / "models" / "demo"


def demonstration_engine(say: Callable[[str], object]) -> Path:
    """Return the engine's path; where it is not there yet, compile it, in a process of its own.

    Raises MissingLibraryError where that takes libraries that are not installed, BuildError where it fails, OSError.
    """
    path = user_cache("app") / _digest() / "demonstration.engine"
    if path.is_file():
        return path
    if find_spec("torch") is None:
        what = "no engine was given, and compiling the demonstration"
        raise MissingLibraryError("torch", "compile", what)
    say("no engine was given: compiling the bundled demonstration model's, once, which takes a minute or two")
    with atomic_path(path) as temporary:
        # This stage knows nothing of compiling.
        command = [sys.executable, "-m", "intsr", "demo", "--engine-only", "-o", str(temporary)]
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code != 0:
            fix = "compile one by hand (intsr compile demo), and name it"
            raise BuildError("the demonstration engine", f"compiling ended with exit code {code}", fix=fix)
    return path


def _digest() -> str:
    """Of what it is made of, and by."""
    versions = [metadata.version(name) for name in ("intsr", "openvino")]
    files = [sha256_from_path(path) for path in sorted(_MODEL.rglob("*")) if path.is_file()]
    return hashlib.sha256("\n".join([*versions, *files]).encode()).hexdigest()[:16]
