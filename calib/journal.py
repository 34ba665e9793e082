"""What a calibration has done so far, on disk: started again after a kill, it goes on to the same result.

A work folder holds `run.json`, what identifies the run; one `.pt` file for every finished phase; and `current.pt`,
the phase in progress at some step. Everything else a phase needs is computed again from these.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from intsr.errors import CalibrationError
from intsr.files import atomic_path, check_writable_folder

RUN_NAME, CURRENT_NAME = "run.json", "current.pt"
CHECKPOINT_SECONDS = 20.0


class Journal:
    """folder: where to keep it, or None to keep nothing. identity: settings that a resumed run must share."""

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], checkpoint_seconds: float | None = None
    ) -> None:
        self.folder = folder
        self.checkpoint_seconds = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
        self._start = self._last_checkpoint = time.monotonic()
        self._seconds_before = 0.0
        if folder is None:
            return
        path = folder / RUN_NAME
        if path.exists():
            _check_identity(path, identity)
        else:
            check_writable_folder(folder)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(dict(identity), indent=1) + "\n", encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Time spent, that of interrupted runs up to their last checkpoint included."""
        return self._seconds_before + time.monotonic() - self._start

    def finished(self, phase: str) -> dict[str, Any] | None:
        """What `finish` was given for this phase, by this run or one before."""
        return None if self.folder is None else self._read(self._phase_path(phase))

    def finish(self, phase: str, state: dict[str, Any]) -> None:
        if self.folder is not None:
            self._write(self._phase_path(phase), state)
            (self.folder / CURRENT_NAME).unlink(missing_ok=True)

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


def _check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationError(path, f"cannot be read ({error})", fix=f"remove {path.parent}") from error
    plain = json.loads(json.dumps(dict(identity)))
    if known != plain:
        different = [key for key in {**known, **plain} if known.get(key) != plain.get(key)]
        got = ", ".join(f"{key} {_short(plain.get(key))}" for key in different)
        began = ", ".join(f"{key} {_short(known.get(key))}" for key in different)
        fix = "give the same settings, start over with --restart, or choose another output"
        raise CalibrationError("resuming a calibration", got, f"{began}, as it began", fix)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
