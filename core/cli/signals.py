"""Signals, and standard streams that are closed or go: what the process sees to before anything else is imported."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import Any

# The signal that has asked for the end. A library may turn its exception into another one: OpenVINO, while it is
# being imported, into an ImportError.
_ended_by: int | None = None


def exit_code_of_signal() -> int | None:
    """128 + the signal that has asked for the end, as shells report it; None without one."""
    return None if _ended_by is None else 128 + _ended_by


def handle_signals() -> None:
    """Have Ctrl-C, SIGTERM and a closed terminal end this process by an exception."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What a shell's background or nohup ignores stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    """Raise, so that temporary files are removed on the way out."""
    global _ended_by
    _ended_by = number
    if number == signal.SIGINT:
        # Another Ctrl-C must not disturb the cleaning up; Ctrl-\ still ends the program at once.
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt
    sys.exit(128 + number)


def fill_standard_streams() -> None:
    """Open what was closed (`2>&-`): the next file would get its number, and a library's messages."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free: this one.
            os.open(os.devnull, os.O_RDWR)


class _Unbreakable(io.FileIO):
    """Takes all that is written: words for people who are gone, or do not read, must not end the work."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            # None where a pipe that does not wait is full.
            super().write(data)
        return memoryview(data).nbytes


def keep_on_without_stderr() -> None:
    """Have writing go on where whoever reads stderr goes in the middle (a closed terminal, `2>&1 | head`)."""
    if sys.stderr is not None:
        raw = _Unbreakable(2, "w", closefd=False)
        encoding = sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)
