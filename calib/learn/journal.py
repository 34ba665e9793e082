"""A calibration's progress on disk: started again after a kill, it goes on to the same result.

A work folder holds `run.json`, what identifies the run; one `.pt` file for every finished phase; and `current.pt`,
the phase in progress at some step. Everything else a phase needs is computed again from these. While a run is at work
it keeps its blocks' inputs there, too, where --cache disk asks for that. Nothing else in the folder is ever touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from intsr.errors import CalibrationError, UsageError
from intsr.files import atomic_path, check_writable_folder

RUN_NAME, CURRENT_NAME = "run.json", "current.pt"
# Of a work folder's name, behind the output's.
WORK_SUFFIX = ".work"
CACHE_PREFIX = "intsr-cache-"
CHECKPOINT_SECONDS = 20.0
# What is written beside run.json, and what a process killed while it writes leaves of any of them.
_STATE_NAME = re.compile(r"[0-9a-f]{16}\.pt|current\.pt")
_PART_NAME = re.compile(r"\.([0-9a-f]{16}\.pt|current\.pt|run\.json)\.\w{8}\.part")
# Of an identity: what is installed, and cannot be given as an option.
_INSTALLED = ("version", "torch", "plan")


class Journal:
    """folder: where to keep it, or None to keep nothing. identity: settings that a resumed run must share.

    Raises UsageError for a folder that holds something else, or that another process works in; CalibrationError for
    one that was begun with other settings.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], checkpoint_seconds: float | None = None
    ) -> None:
        self.folder = folder
        self.checkpoint_seconds = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
        self._start = self._last_checkpoint = time.monotonic()
        self._seconds_before = 0.0
        self._unlock: Callable[[], object] = lambda: None
        if folder is None:
            return
        check_writable_folder(folder)
        lock = _lock(folder)
        try:
            _open_folder(folder, identity)
        except BaseException:
            _unlock(lock)
            raise
        # Whoever forgets `close` must not be shut out for the rest of the process.
        self._unlock = weakref.finalize(self, _unlock, lock)

    def close(self) -> None:
        """Let others work in the folder."""
        self._unlock()

    @property
    def seconds(self) -> float:
        """Time spent, that of interrupted runs up to their last checkpoint included."""
        return self._seconds_before + time.monotonic() - self._start

    def step(self, phase: str, run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """Return what `run` returned for this phase in a run before, or run it now and keep that.

        The second value tells whether it was there.
        """
        known = None if self.folder is None else self._read(self._phase_path(phase))
        if known is not None:
            return known, True
        state = run()
        if self.folder is not None:
            self._write(self._phase_path(phase), state)
            (self.folder / CURRENT_NAME).unlink(missing_ok=True)
        return state, False

    def in_progress(self, phase: str) -> dict[str, Any] | None:
        """The last checkpoint, where it is one of this phase."""
        state = None if self.folder is None else self._read(self.folder / CURRENT_NAME)
        return state if state is not None and state["phase"] == phase else None

    def checkpoint_due(self) -> bool:
        return self.folder is not None and time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds

    def checkpoint(self, phase: str, state: dict[str, Any]) -> None:
        assert self.folder is not None
        self._write(self.folder / CURRENT_NAME, {**state, "phase": phase})
        self._last_checkpoint = time.monotonic()

    def _phase_path(self, phase: str) -> Path:
        assert self.folder is not None
        # Phases are named after modules; a hash keeps any name a file name.
        return self.folder / f"{hashlib.sha256(phase.encode()).hexdigest()[:16]}.pt"

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        with atomic_path(path) as temporary:
            torch.save({**state, "seconds": self.seconds}, temporary)

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CalibrationError(path, f"cannot be read ({error})", fix=f"remove {self.folder}") from error
        self._seconds_before = max(self._seconds_before, float(state.pop("seconds")))
        return state


def remove_work(folder: Path) -> None:
    """Remove what journals have written into `folder`, and the folder if nothing else is in it.

    A folder without a journal stays as it is. Raises UsageError where another process works in it.
    """
    if not (folder / RUN_NAME).is_file():
        return
    lock = _lock(folder)
    try:
        _remove_leftovers(folder)
        for path in list(folder.iterdir()):
            if _STATE_NAME.fullmatch(path.name):
                path.unlink()
        # At last: killed on the way, it is still seen whose folder this is.
        (folder / RUN_NAME).unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
    finally:
        _unlock(lock)


def _open_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    path = folder / RUN_NAME
    if path.exists():
        _check_identity(path, identity)
        _remove_leftovers(folder)
        return
    _remove_parts(folder)
    foreign = next(folder.iterdir(), None)
    if foreign is not None:
        got, expected = f"holds {foreign.name} and no {RUN_NAME}", "a folder that an interrupted run left, or none"
        raise UsageError(folder, got, expected, "move it away or choose another output")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(dict(identity), indent=1) + "\n", encoding="utf-8")


def _remove_parts(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if _PART_NAME.fullmatch(path.name):
            path.unlink()


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs could not: half-written files, and caches as large as a block's inputs."""
    _remove_parts(folder)
    for path in folder.glob(f"{CACHE_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks `folder` until it is closed; None where the system has no such locks.

    Raises UsageError where another process has it.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            fix = "wait for it, or choose another output"
            raise UsageError(folder, "another process calibrates into it", fix=fix) from error
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            raise ValueError(f"a JSON {type(known).__name__}")
    except (OSError, ValueError) as error:
        raise CalibrationError(path, f"cannot be read ({error})", fix=f"remove {path.parent}") from error
    plain = json.loads(json.dumps(dict(identity)))
    if known != plain:
        different = [key for key in {**known, **plain} if known.get(key) != plain.get(key)]
        got = ", ".join(f"{key} {_short(plain.get(key))}" for key in different)
        began = ", ".join(f"{key} {_short(known.get(key))}" for key in different)
        fix = f"{_how_to_agree(known, different)}, start over with --restart, or choose another output"
        raise CalibrationError("resuming a calibration", got, f"{began}, as it began", fix)


def _how_to_agree(known: Mapping[str, Any], different: list[str]) -> str:
    """Say what to do about it, also where no option of the command decides it."""
    ways = []
    if "threads" in different and "threads" in known:
        ways.append(f"set OMP_NUM_THREADS={known['threads']}")
    if not set(different).isdisjoint(_INSTALLED):
        ways.append("use the versions that it began with")
    if not set(different) <= {"threads", *_INSTALLED}:
        ways.append("give the same settings")
    return " and ".join(ways)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
