"""The parts of a film that is being made, in a folder beside it: what a killed run has finished is not lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from intsr.errors import UsageError
from intsr.files import atomic_path, try_lock
from intsr.json_files import read_json

_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One finished part. pts: of its frames, rising, in units of the film's time base; last_duration: of the last
    one, in the same. scores: sums over them.
    """

    name: str
    pts: tuple[int, ...]
    last_duration: int
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _State:
    """job: plain data; a run with other data is another run."""

    job: dict[str, Any]
    parts: tuple[Part, ...] = ()


class Parts:
    """The folder, locked. Made by `open_parts`."""

    def __init__(self, folder: Path, state: _State) -> None:
        self.folder, self._state = folder, state

    @property
    def parts(self) -> tuple[Part, ...]:
        """The finished parts, in order."""
        return self._state.parts

    @property
    def last_pts(self) -> int | None:
        """The time of the last frame that is there; None where there is none."""
        return self.parts[-1].pts[-1] if self.parts else None

    @property
    def frames(self) -> int:
        return sum(len(part.pts) for part in self.parts)

    def path(self, part: Part) -> Path:
        return self.folder / part.name

    def next_path(self) -> Path:
        """Where the next part is written before `add` takes it in: a leftover of a killed run is overwritten."""
        return self.folder / f"{len(self.parts) + 1:06d}.part"

    def add(self, pts: tuple[int, ...], last_duration: int, scores: Mapping[str, float]) -> None:
        """Take in the part at `next_path`, whose file is closed."""
        path = self.next_path()
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._write(_State(self._state.job, (*self.parts, Part(path.name, pts, last_duration, dict(scores)))))

    def _write(self, state: _State) -> None:
        with atomic_path(self.folder / _STATE) as temporary:
            temporary.write_text(json.dumps(asdict(state)))
        self._state = state

    def remove(self) -> None:
        """Remove the folder, once the film is there."""
        shutil.rmtree(self.folder)


def lone_part(folder: Path) -> Parts:
    """Return a film of one part of one frame, to be written there: a trial."""
    return Parts(folder, _State({}, (Part("trial.part", (0,), 1),)))


def parts_folder(output: Path) -> Path:
    """Return the folder of the parts of a film."""
    return output.with_name(f"{output.name}.parts")


@contextmanager
def open_parts(output: Path, job: dict[str, Any], anew: bool) -> Iterator[Parts]:
    """Yield the parts that an earlier run of the same job has finished, maybe none.

    job: plain data of all that the frames depend on. anew: begin from the first frame in any case. The folder is
    removed where it holds no part at the end. Raises UsageError where the folder belongs to another job, or another
    process is at work in it.
    """
    folder = parts_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        if not try_lock(lock.fileno()):
            raise UsageError(output, f"another process is making it, in {folder}", fix="wait for it")
        parts = Parts(folder, _state(folder, output, job, anew))
        try:
            yield parts
        finally:
            if folder.is_dir() and not parts.parts:
                parts.remove()


def _state(folder: Path, output: Path, job: dict[str, Any], anew: bool) -> _State:
    path = folder / _STATE
    begun = _State(json.loads(json.dumps(job)))
    if anew or not path.exists():
        path.unlink(missing_ok=True)
        return begun
    fix = f"give the same options to go on, --overwrite to begin anew, or remove {folder}"
    found = read_json(path, _State, fix=fix)
    if changed := sorted(name for name in {*found.job, *begun.job} if found.job.get(name) != begun.job.get(name)):
        # Options are named with what they were.
        named = [f"{name} {found.job.get(name)}" if name.startswith("--") else f"another {name}" for name in changed]
        raise UsageError(output, f"was begun with {', '.join(named)}", fix=fix)
    return found
